"""What hides the origin of the responses from the people who compare them.

Ids and sides on the screen are derived from a secret of the batch, per annotator: whoever has the data and every reply
of the app cannot tell which response is which, nor match the pairs of two annotators by their ids.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets


def new_salt() -> str:
    """Return a new secret of a batch: 32 hex digits."""
    return secrets.token_hex(16)


def blinded_id(salt: str, annotator: str, item: str) -> str:
    """Return the id under which an annotator's browser knows an item: 16 hex digits."""
    return _keyed(salt, "id", annotator, item).hex()[:16]


def is_swapped(salt: str, annotator: str, item: str) -> bool:
    """Return whether an annotator sees the second response on the left; it stays so for this pair and person."""
    return bool(_keyed(salt, "side", annotator, item)[0] & 1)


def shown_order(salt: str, annotator: str, item: str, count: int) -> tuple[int, ...]:
    """Return the places of a group's responses in the order in which an annotator sees them; it stays so."""
    return tuple(sorted(range(count), key=lambda place: _keyed(salt, "order", annotator, item, str(place))))


def uniform(salt: str, *parts: str) -> float:
    """Return a number in [0, 1) that follows from the secret of a batch and from names, and is random without it."""
    return int.from_bytes(_keyed(salt, *parts)[:8], "big") / 2**64


def drawn(salt: str, most: int, *parts: str) -> int:
    """Return a number from 0 to below ``most``, which the secret decides."""
    return int.from_bytes(_keyed(salt, "draw", *parts)[:8], "big") % most


def pseudonym(salt: str, annotator: str) -> str:
    """Return the name of an annotator in an export that hides names: the same in every export of the batch."""
    return f"person-{_keyed(salt, 'name', annotator).hex()[:8]}"


def _keyed(salt: str, *parts: str) -> bytes:
    return hmac.new(salt.encode(), "\0".join(parts).encode(), hashlib.sha256).digest()
