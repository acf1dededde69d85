"""Text to token ids, where text that spells a control token stays text.

Owns the encoding of one rendered text: a character of a private-use area stands for each control token that content
spells, so what the tokenizer finds is the template's own; tokens know where in the text they are. Knows nothing of
conversations. Torch-free.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

PRIVATE = (0xF0000, 0x100000)
"""First characters of the two areas of Unicode that no text has a use for."""

_KEPT_LENGTH = 64
"""Characters of the longest beginning of an answer whose tokens are kept in memory."""

_ANCHORS = ("\n", "a", ".")
"""Texts a continuation is encoded behind, where a tokenizer writes a space before every text."""


class Text(NamedTuple):
    """A text, with one private character for each control token that content spells.

    Attributes:
        text: what is encoded.
        spelled: each private character, and the text it stands for.
    """

    text: str
    spelled: Mapping[str, str] = {}

    def part(self, start: int, end: int) -> Text:
        """Return the text between two places."""
        return Text(self.text[start:end], self.spelled)

    @property
    def plain(self) -> str:
        """The text as it reads."""
        return "".join(self.spelled.get(letter, letter) for letter in self.text) if self.spelled else self.text

    @property
    def has_spelled(self) -> bool:
        """Whether content spells a control token here."""
        return bool(self.spelled) and any(letter in self.spelled for letter in self.text)


@dataclass(frozen=True)
class Tokens:
    """Tokens of a text, and the characters each stands for.

    Attributes:
        ids: of the tokens.
        starts: first character of each.
        ends: the character behind each.
    """

    ids: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def straddles(self, place: int) -> bool:
        """Whether a token lies across a place of the text."""
        last = bisect_left(self.starts, place) - 1
        return last >= 0 and self.ends[last] > place

    def until(self, place: int) -> int:
        """Return how many tokens lie before a place that no token straddles."""
        return bisect_left(self.starts, place)

    def between(self, first: int, last: int, shift: int = 0) -> Tokens:
        """Return tokens ``first`` to ``last``, their places moved."""
        starts, ends = self.starts[first:last], self.ends[first:last]
        return Tokens(self.ids[first:last], [at + shift for at in starts], [at + shift for at in ends])

    def extend(self, more: Tokens) -> None:
        """Add tokens at the end."""
        self.ids.extend(more.ids)
        self.starts.extend(more.starts)
        self.ends.extend(more.ends)


class TextEncoder:
    """Encodes texts with a tokenizer; it must not change meanwhile."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self.control = control_tokens(tokenizer)
        longest_first = sorted(self.control, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._alone: dict[str, list[int]] = {}
        begun = {token[:end] for token in self.control for end in range(1, len(token))}
        self._begun = tuple(sorted(begun, key=len, reverse=True))

    def names(self, text: str) -> bool:
        """Whether a text spells a control token."""
        return self._control is not None and self._control.search(text) is not None

    def spells(self, text: str) -> bool:
        """Whether a text spells a control token, or ends with the beginning of one."""
        if self._control is None:
            return False
        return self._control.search(text) is not None or text.rstrip().endswith(self._begun)

    def shield(self, text: str, spelled: dict[str, str]) -> str:
        """Return a text with private characters for what it spells; ``spelled`` keeps what each stands for."""
        if self._control is None or not self.spells(text):
            return text
        known = {token: letter for letter, token in spelled.items()}

        def letter_of(token: str) -> str:
            if token not in known:
                letter = next(chr(code) for code in _free(spelled))
                known[token], spelled[letter] = letter, token
            return known[token]

        text = self._control.sub(lambda found: letter_of(found.group()), text)
        begun = next((begun for begun in self._begun if text.rstrip().endswith(begun)), "")
        if begun:  # what follows in the template could complete it
            at = len(text.rstrip()) - len(begun)
            text = text[:at] + letter_of(begun) + text[at + len(begun) :]
        return text

    def content(self, text: str) -> Text:
        """Return a text of which nothing is a control token."""
        spelled = own_letters(text)
        return Text(self.shield(text, spelled), spelled)

    def encode(self, texts: Sequence[Text], spoken: Sequence[Sequence[tuple[int, int]]] = ()) -> list[Tokens]:
        """Return the tokens of each text.

        Args:
            texts: what to encode, without the tokenizer's own start and end tokens.
            spoken: for each text, first and last place of what a model says. No token straddles them, and what stands
                before such a part is encoded as it is when the model is asked to go on, by itself.
        """
        said = spoken or [()] * len(texts)
        if self.backend is None:
            return [
                self._by_parts(text, [place for part in parts for place in part])
                for text, parts in zip(texts, said, strict=True)
            ]
        with self._plainly():
            found = self.backend.encode_batch([text.text for text in texts], add_special_tokens=False)
            made = []
            for text, encoding, parts in zip(texts, found, said, strict=True):
                tokens = _tokens(encoding)
                if text.has_spelled:
                    tokens = self._spelled_out(text, tokens)
                made.append(self._cut(text, tokens, parts) if parts else tokens)
        return made

    def encode_one(self, text: Text, spoken: Sequence[tuple[int, int]] = ()) -> Tokens:
        """Return the tokens of one text."""
        return self.encode([text], [spoken])[0]

    @cached_property
    def prefix(self) -> list[int]:
        """The tokens the tokenizer itself writes before a text, e.g. its start token."""
        with_added, without = (self.tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
        width = len(without)
        at = next((i for i in range(len(with_added) - width + 1) if with_added[i : i + width] == without), 0)
        return list(with_added[:at])

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """Have tokens know the white space they stand for, and nothing cut or padded by an earlier call."""
        backend = self.backend
        after, apart = backend.post_processor, backend.encode_special_tokens
        backend.no_truncation()
        backend.no_padding()
        backend.post_processor, backend.encode_special_tokens = None, False
        try:
            yield
        finally:
            backend.post_processor, backend.encode_special_tokens = after, apart

    def _spelled_out(self, text: Text, tokens: Tokens) -> Tokens:
        """Encode the parts between the template's control tokens anew where content spells one."""
        made, first, start = Tokens(), 0, 0
        own = [i for i, token in enumerate(tokens.ids) if self._is_control(text.text, token, tokens, i)]
        for i in [*own, len(tokens.ids)]:
            end = tokens.starts[i] if i < len(tokens.ids) else len(text.text)
            part = text.part(start, end)
            made.extend(self._literal(part, start) if part.has_spelled else tokens.between(first, i))
            if i < len(tokens.ids):
                made.extend(tokens.between(i, i + 1))
                first, start = i + 1, tokens.ends[i]
        return made

    def _is_control(self, text: str, token: int, tokens: Tokens, i: int) -> bool:
        there = text[tokens.starts[i] : tokens.ends[i]].strip()
        return self.control.get(there) == token

    def _literal(self, part: Text, start: int) -> Tokens:
        """Encode a part without control tokens of its own as text, at its place in the whole."""
        places = [at for at, letter in enumerate(part.text) for _ in part.spelled.get(letter, letter)]
        anchor = _ANCHORS[0] if start and self._spaces_first_only else ""
        self.backend.encode_special_tokens = True
        try:
            encoding = self.backend.encode(anchor + part.plain, add_special_tokens=False)
            found = _tokens(encoding)
            if anchor:
                found = found.between(found.until(len(anchor)), len(found.ids), -len(anchor))
            ids = set(self.control.values())
            if any(token in ids for token in found.ids):  # a vocabulary whose model itself makes the token
                found = self._letters(part.plain, ids)
        finally:
            self.backend.encode_special_tokens = False
        starts = [start + places[min(at, len(places) - 1)] for at in found.starts]
        ends = [start + (places[at - 1] + 1 if at else 0) for at in found.ends]
        return Tokens(found.ids, starts, ends)

    def _letters(self, text: str, control: set[int]) -> Tokens:
        """Encode a text in pieces that break every control token it spells after its first letter."""
        assert self._control is not None
        made, last = Tokens(), 0
        for end in [*(found.start() + 1 for found in self._control.finditer(text)), len(text)]:
            piece = _tokens(self.backend.encode(text[last:end], add_special_tokens=False))
            kept = [i for i, token in enumerate(piece.ids) if token not in control]
            made.extend(Tokens(*([values[i] for i in kept] for values in (piece.ids, *_moved(piece, last)))))
            last = end
        return made

    @cached_property
    def _spaces_first_only(self) -> bool:
        """Whether the tokenizer writes a space before the first part of a text, and before no other."""
        token = next(iter(self.control), "")
        alone, behind = (self.backend.encode(text, add_special_tokens=False).ids for text in ("x", f"{token}x"))
        return bool(token) and alone != behind[1:]

    @cached_property
    def _writes_a_space(self) -> bool:
        alone, behind = (self.backend.encode(text, add_special_tokens=False).ids for text in ("x", "\nx"))
        return bool(alone != behind[-len(alone) :])

    def _cut(self, text: Text, tokens: Tokens, spoken: Sequence[tuple[int, int]]) -> Tokens:
        """Encode what stands before, in and behind spoken parts by itself, where that gives other tokens."""
        wrong = {start for start, _ in spoken if tokens.straddles(start)}
        # A control token may swallow the white space behind it, as Phi-3's do: it ends what is said all the same.
        wrong |= {end for _, end in spoken if tokens.straddles(end) and not self._ends_in_control(tokens, end)}
        wrong |= {start for start, _ in spoken if start not in wrong and not self._ends_alike(text, tokens, start)}
        if not wrong:
            return tokens
        made = Tokens()
        bounds = [0, *sorted(wrong), len(text.text)]
        for start, end in pairwise(bounds):
            made.extend(self._continued(text.part(start, end), start))
        return made

    def _ends_in_control(self, tokens: Tokens, place: int) -> bool:
        """Whether the token that begins last before a place is a control token."""
        return tokens.ids[tokens.until(place) - 1] in self._control_ids

    def _ends_alike(self, text: Text, tokens: Tokens, place: int) -> bool:
        """Whether the tokens before a place are those of a text that ends there.

        White space is where they differ: GPT-2's pattern takes two line breaks for one token at the end of a text, and
        for two before a letter. What stands before the last control token cannot depend on it.
        """
        last = tokens.until(place)
        first = next((i for i in reversed(range(last)) if tokens.ids[i] in self._control_ids), 0)
        before = text.part(tokens.starts[first] if first else 0, place)
        if len(before.text) > _KEPT_LENGTH or before.has_spelled:
            return self._one(before).ids == tokens.ids[first:last]
        if before.text not in self._alone:
            self._alone[before.text] = self._one(before).ids
        return self._alone[before.text] == tokens.ids[first:last]

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self.control.values())

    def _continued(self, part: Text, start: int) -> Tokens:
        """Encode a part as what follows a text."""
        for anchor in _ANCHORS if start and self._writes_a_space else ():
            tokens = self._one(Text(anchor + part.text, part.spelled))
            if not tokens.straddles(len(anchor)):
                return tokens.between(tokens.until(len(anchor)), len(tokens.ids), start - len(anchor))
        tokens = self._one(part)
        return tokens.between(0, len(tokens.ids), start)

    def _one(self, text: Text) -> Tokens:
        tokens = _tokens(self.backend.encode(text.text, add_special_tokens=False))
        return self._spelled_out(text, tokens) if text.has_spelled else tokens

    def _by_parts(self, text: Text, places: Sequence[int]) -> Tokens:
        """Encode with a tokenizer that does not say where its tokens are: part by part."""
        made = Tokens()
        bounds = sorted({0, len(text.text), *places})
        for start, end in pairwise(bounds):
            part = text.part(start, end)
            extra = {"split_special_tokens": True} if part.has_spelled else {}
            split = re.split(f"({self._control.pattern})", part.text) if self._control and extra else [part.text]
            for piece in filter(None, split):
                plain = Text(piece, text.spelled).plain
                is_control = piece in self.control
                how = {} if is_control else extra
                ids = list(self.tokenizer(plain, add_special_tokens=False, **how)["input_ids"])
                made.extend(Tokens(ids, [start] * len(ids), [end] * len(ids)))
        return made


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the tokens that mean something to the model beyond their text: the special ones, by their text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {token.content: int(number) for number, token in added.items() if token.special}
    for token in tokenizer.all_special_tokens:
        found.setdefault(str(token), int(tokenizer.convert_tokens_to_ids(token)))
    return {token: number for token, number in found.items() if token.strip()}


def own_letters(text: str) -> dict[str, str]:
    """Return the private characters a text has itself, each standing for itself."""
    return {letter: letter for letter in text if ord(letter) >= PRIVATE[0]}


def _free(taken: Mapping[str, str]) -> Iterator[int]:
    for first in PRIVATE:
        yield from (code for code in range(first, first + 0xFFFE) if chr(code) not in taken)


def _moved(tokens: Tokens, by: int) -> tuple[list[int], list[int]]:
    return [at + by for at in tokens.starts], [at + by for at in tokens.ends]


def _tokens(encoding: Any) -> Tokens:
    offsets = encoding.offsets
    return Tokens(list(encoding.ids), [start for start, _ in offsets], [end for _, end in offsets])
