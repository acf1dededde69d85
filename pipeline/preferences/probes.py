"""Probes: hidden items that say how carefully a person labels, among the items of a batch.

A *gold item* is a pair whose better response is known. A *repeat* is a pair that the person has labelled already, with
the sides exchanged. Both look like any other item: ids and sides come from the secret of the batch, and the numbers
that a browser is told do not depend on which items are probes (`probe_choice.py`). Neither makes a preference, nor
counts as a label of the batch.

In the ledger a probe has the id of its pair behind `gold:` or `repeat:`. Knows nothing of who has answered what.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from pipeline.preferences import blinding
from pipeline.preferences.events import Verdict
from pipeline.preferences.items import Item, text_of

GOLD, REPEAT = "gold:", "repeat:"

KNOWN: Verdict = "first"
"""The verdict on every gold item: its first response is the one that the data prefers."""


def is_probe(item: str) -> bool:
    """Return whether an id is that of a gold item or of a repeat."""
    return item.startswith((GOLD, REPEAT))


def repeated(item: str) -> str:
    """Return the id of the pair that a repeat shows again."""
    return item.removeprefix(REPEAT)


def is_swapped(salt: str, annotator: str, item: str) -> bool:
    """Return whether an annotator sees the second response on the left; a repeat exchanges the sides of its pair."""
    if item.startswith(REPEAT):
        return not blinding.is_swapped(salt, annotator, repeated(item))
    return blinding.is_swapped(salt, annotator, item)


@dataclass(frozen=True)
class ProbePlan:
    """Which probes people are shown, and how often.

    Attributes:
        gold: gold items, with the ids of probes.
        gold_share: expected share of gold items among what a person is shown.
        repeats: expected share of repeats.
    """

    gold: Sequence[Item] = ()
    gold_share: float = 0.0
    repeats: float = 0.0
    by_id: dict[str, Item] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_id", {item.id: item for item in self.gold})

    @property
    def share(self) -> float:
        """Expected share of probes among what a person is shown."""
        return (self.gold_share if self.gold else 0.0) + self.repeats


NO_PROBES = ProbePlan()


def gold_items(known: Iterable[Item], batch: Iterable[Item]) -> tuple[list[Item], int]:
    """Return the gold items of pairs with a known answer, and the number of pairs left out.

    A pair that is in the batch as well, in either order, is no gold item: a person would see it twice.
    """
    in_batch = {_texts(item) for item in batch}
    known = list(known)
    gold = [replace(item, id=GOLD + item.id) for item in known if _texts(item) not in in_batch]
    return gold, len(known) - len(gold)


def _texts(item: Item) -> tuple[str, frozenset[str]]:
    return text_of(item.prompt), frozenset(text_of(turns) for turns in item.responses)
