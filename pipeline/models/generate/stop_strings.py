"""Where a response ends at a stop string: its text before the string, and its tokens up to it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Cut(NamedTuple):
    """A response, cut at a stop string if it has one.

    Attributes:
        text: text without special tokens, before the first stop string.
        ids: its tokens, the stop string included; what follows it is not.
        is_cut: whether it has a stop string.
    """

    text: str
    ids: list[int]
    is_cut: bool


def cut_at_stop(ids: list[int], stops: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Cut:
    """Cut a response at the first of its stop strings; it then has the tokens that a server which halts there samples.

    Args:
        ids: sampled tokens.
        stops: stop strings.
        tokenizer: their tokenizer.
    """
    text = _text(ids, tokenizer)
    places = [(place, stop) for stop in stops if (place := text.find(stop)) >= 0]
    if not places:
        return Cut(text, ids, is_cut=False)
    place, stop = min(places, key=lambda one: (one[0], len(one[1])))
    last = bisect_left(range(len(ids)), 1, key=lambda at: stop in _text(ids[: at + 1], tokenizer))
    return Cut(text[:place], ids[: last + 1], is_cut=True)


def _text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))
