"""Versions of the guidelines that annotators are shown."""

from __future__ import annotations

import hashlib


def guidelines_version(guidelines: str) -> str:
    """Return the version of guidelines: the first 12 hex digits of their SHA-256; empty without guidelines."""
    return hashlib.sha256(guidelines.encode()).hexdigest()[:12] if guidelines else ""
