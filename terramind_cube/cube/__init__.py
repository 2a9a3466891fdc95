"""STAC items become one Dataset on one grid."""

from __future__ import annotations
