"""Who somebody is: their name, their role, and what their token lets them do."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

from pipeline.errors import PipelineError, Problem
from pipeline.preferences.events import Access, EventBody, Role

LONGEST_NAME = 64
NOUNS: Mapping[Role, str] = {"annotator": "an annotator", "lead": "a lead"}


class Caller(NamedTuple):
    """Somebody whose token is known.

    Attributes:
        name: their name.
        access: whether they are paused.
        role: what they are there for.
    """

    name: str
    access: Access
    role: Role


def plain_name(name: str) -> str:
    """Return a name without blanks around it, and with each accented letter as one character: what looks equal is."""
    return unicodedata.normalize("NFC", name.strip())


def check_name(name: str) -> None:
    """Check that a name is one line that people can read, without commas, which separate names.

    Raises:
        PipelineError: it is not.
    """
    if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable() or "," in name:
        expected = f"1 to {LONGEST_NAME} letters, digits and signs of one line, without commas"
        raise PipelineError(Problem(f"the name {name[:LONGEST_NAME]!r}", expected))


def by_lead(lead: str, body: EventBody) -> EventBody:
    """Return the body of an event with the lead who caused it, if one did."""
    return {**body, "by": lead} if lead else body


def hashed_token(token: str) -> str:
    """Return the SHA-256 of a link's token, which is all that the ledger stores of it."""
    return hashlib.sha256(token.encode()).hexdigest()
