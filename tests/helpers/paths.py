"""Folders that tests read from."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
DATA = TESTS / "data"
HELPERS = TESTS / "helpers"
ROOT = TESTS.parent
"""The checkout."""
