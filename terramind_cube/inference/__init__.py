"""Plan a generation and map it over tile groups."""

from __future__ import annotations
