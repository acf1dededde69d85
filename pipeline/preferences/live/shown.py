"""What a browser receives of a live dialogue: without anything that tells which model gave which answer."""

from __future__ import annotations

from typing import TypedDict

from pipeline.preferences.blinding import blinded_id, is_swapped
from pipeline.preferences.live.dialogues import Dialogue
from pipeline.preferences.shown import Progress, ShownTurn


class ShownDialogue(TypedDict):
    """A dialogue as a browser receives it; nothing in it tells the models apart.

    Attributes:
        phase: what it waits for; `none` before the first dialogue.
        turns: what was said, without answers that wait for a choice.
        item: id of the two answers, another one for every annotator; empty when there is nothing to choose.
        left: the answer on the left of the screen.
        right: the answer on its right.
        offered: message that the person may begin with.
        note: why the last two answers are not compared: `equal` or `unfit`; `again` while both models are asked again,
            because one of them could not answer; else empty.
        over: why it is over: `turns`, `context`, `silent`, `failed`, `left`; empty while it goes on.
        left_messages: number of messages that the person may still send.
        progress: how far the batch is.
    """

    phase: str
    turns: list[ShownTurn]
    item: str
    left: str
    right: str
    offered: str
    note: str
    over: str
    left_messages: int
    progress: Progress


def shown_dialogue(dialogue: Dialogue | None, annotator: str, salt: str, progress: Progress) -> ShownDialogue:
    """Return a dialogue as a browser receives it.

    Args:
        dialogue: the dialogue that the person is in; None before the first.
        annotator: name of the person.
        salt: secret of the batch, which decides ids and sides.
        progress: how far the batch is.
    """
    shown = ShownDialogue(
        phase="none", turns=[], item="", left="", right="", offered="", note="", over="", left_messages=0,
        progress=progress,
    )  # fmt: skip
    if dialogue is None:
        return shown
    phase = dialogue.phase
    last = dialogue.last if dialogue.exchanges else None
    is_open = last is not None and last.goes_on is None
    turns = dialogue.turns(last if is_open else None)
    shown["phase"] = phase
    shown["turns"] = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    shown["left_messages"] = dialogue.most - dialogue.messages
    shown["over"] = dialogue.ended or ("turns" if phase == "over" else "")
    if last is None:
        shown["offered"] = dialogue.offered
        return shown
    shown["note"] = last.uncompared
    if phase == "choose":
        texts = last.texts[::-1] if is_swapped(salt, annotator, last.item) else last.texts
        shown["item"] = blinded_id(salt, annotator, last.item)
        shown["left"], shown["right"] = texts
    return shown
