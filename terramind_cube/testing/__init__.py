"""Assertions that others may reuse."""

from __future__ import annotations
