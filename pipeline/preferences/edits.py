"""The responses that people edited as they preferred them, and which edit a row of preferences uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pipeline.preferences.events import Verdict
from pipeline.preferences.items import Turns
from pipeline.preferences.labels import Answer, State
from pipeline.records.shapes.turns import Turn


def chosen_edit(labels: Iterable[Answer], verdict: Verdict) -> str:
    """Return the edit that a row uses: of the people with this verdict, what most of them wrote; then the newest.

    Empty when none of them edited the response.
    """
    newest_first = sorted(labels, key=lambda label: label.number, reverse=True)
    edits = [label.details.edit for label in newest_first if label.verdict == verdict and label.details]
    counts = Counter(edit for edit in edits if edit)
    return counts.most_common(1)[0][0] if counts else ""  # of equal counts, the first that was counted


def edited_items(state: State) -> set[str]:
    """Return the ids of the items of which somebody edited a response, mostly few: `chosen_edit` is for these."""
    answers = (pair for own in state.answers.values() for pair in own.items())
    return {item for item, one in answers if one.details is not None and one.details.edit}


def edited(response: Turns, edit: str) -> list[Turn]:
    """Return a copy of a response, its last turn with the text of an edit where there is one."""
    turns = [turn.copy() for turn in response]
    if edit:
        turns[-1]["content"] = edit
    return turns
