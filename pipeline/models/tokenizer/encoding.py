"""Encodes text as token ids; content that spells the name of a control token stays text.

Owns the encoding of one rendered text. A character of a Unicode private-use area stands for each control token that
content spells, so the tokenizer parses only the template's own control tokens. Each token knows its range of
characters. Knows nothing of conversations. Torch-free.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PRIVATE = (0xF0000, 0x100000)
"""First characters of Unicode's two supplementary private-use areas."""

_CACHED_LENGTH = 64
"""Longest text before an answer, in characters, whose tokens are cached."""

_ANCHORS = ("\n", "a", ".")
"""Texts that a continuation is encoded after, if the tokenizer adds a space before every text."""


class Text(NamedTuple):
    """A text, with one private character for each control token that content spells.

    Attributes:
        text: the text to encode.
        spelled: private characters, and the text each stands for.
    """

    text: str
    spelled: Mapping[str, str] = {}

    def part(self, start: int, end: int) -> Text:
        """Return the text between two character positions."""
        return Text(self.text[start:end], self.spelled)

    @property
    def plain(self) -> str:
        """The text with private characters replaced by what they stand for."""
        return "".join(self.spelled.get(letter, letter) for letter in self.text) if self.spelled else self.text

    @property
    def has_spelled(self) -> bool:
        """Whether the text contains a private character that stands for a control token."""
        return bool(self.spelled) and any(letter in self.spelled for letter in self.text)


@dataclass(frozen=True)
class Tokens:
    """Tokens of a text, with the half-open range of characters that each stands for.

    Attributes:
        ids: token ids.
        starts: first character of each token.
        ends: end of each token's range.
    """

    ids: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def straddles(self, place: int) -> bool:
        """Whether a token spans the character position ``place``."""
        last = bisect_left(self.starts, place) - 1
        return last >= 0 and self.ends[last] > place

    def until(self, place: int) -> int:
        """Return the number of tokens before the character position ``place``, which no token spans."""
        return bisect_left(self.starts, place)

    def between(self, first: int, last: int, shift: int = 0) -> Tokens:
        """Return tokens ``first`` to ``last`` (exclusive), with character positions shifted by ``shift``."""
        starts, ends = self.starts[first:last], self.ends[first:last]
        return Tokens(self.ids[first:last], [at + shift for at in starts], [at + shift for at in ends])

    def extend(self, more: Tokens) -> None:
        """Add tokens at the end."""
        self.ids.extend(more.ids)
        self.starts.extend(more.starts)
        self.ends.extend(more.ends)


class TextEncoder:
    """Encodes texts with a tokenizer, which must not change meanwhile."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self.control = control_tokens(tokenizer)
        longest_first = sorted(self.control, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._cached_ids: dict[str, list[int]] = {}
        begun = {token[:end] for token in self.control for end in range(1, len(token))}
        self._control_beginnings = tuple(sorted(begun, key=len, reverse=True))

    def names(self, text: str) -> bool:
        """Whether a text spells a control token."""
        return self._control is not None and self._control.search(text) is not None

    def spells(self, text: str) -> bool:
        """Whether a text spells a control token, or ends with the beginning of one."""
        if self._control is None:
            return False
        return self._control.search(text) is not None or text.rstrip().endswith(self._control_beginnings)

    def shield(self, text: str, spelled: dict[str, str]) -> str:
        """Return a text with control tokens replaced by private characters, which are recorded in ``spelled``."""
        if self._control is None or not self.spells(text):
            return text
        known = {token: letter for letter, token in spelled.items()}

        def letter_of(token: str) -> str:
            if token not in known:
                letter = next(chr(code) for code in _free(spelled))
                known[token], spelled[letter] = letter, token
            return known[token]

        text = self._control.sub(lambda match: letter_of(match.group()), text)
        begun = next((begun for begun in self._control_beginnings if text.rstrip().endswith(begun)), "")
        if begun:  # the template's next characters could complete the control token
            at = len(text.rstrip()) - len(begun)
            text = text[:at] + letter_of(begun) + text[at + len(begun) :]
        return text

    def content(self, text: str) -> Text:
        """Return a text in which no control token is parsed."""
        spelled = own_letters(text)
        return Text(self.shield(text, spelled), spelled)

    def encode(self, texts: Sequence[Text], spoken: Sequence[Sequence[tuple[int, int]]] = ()) -> list[Tokens]:
        """Return the tokens of each text.

        Args:
            texts: texts to encode, without the tokenizer's own start and end tokens.
            spoken: for each text, the character ranges of the model's answers. No token spans a boundary of a range,
                and the text before a range is encoded as it is by itself, when the model is asked for the answer.
        """
        said = spoken or [()] * len(texts)
        if self.backend is None:
            return [
                self._encode_without_offsets(text, [place for part in parts for place in part])
                for text, parts in zip(texts, said, strict=True)
            ]
        with self._without_postprocessing():
            encodings = self.backend.encode_batch([text.text for text in texts], add_special_tokens=False)
            encoded = []
            for text, encoding, parts in zip(texts, encodings, said, strict=True):
                tokens = _tokens(encoding)
                if text.has_spelled:
                    tokens = self._reencoded(text, tokens)
                encoded.append(self._split_at(text, tokens, parts) if parts else tokens)
        return encoded

    def encode_one(self, text: Text, spoken: Sequence[tuple[int, int]] = ()) -> Tokens:
        """Return the tokens of one text."""
        return self.encode([text], [spoken])[0]

    @cached_property
    def prefix(self) -> list[int]:
        """Tokens that the tokenizer itself adds before a text, e.g. its start token."""
        with_added, without = (self.tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
        width = len(without)
        at = next((i for i in range(len(with_added) - width + 1) if with_added[i : i + width] == without), 0)
        return list(with_added[:at])

    @contextmanager
    def _without_postprocessing(self) -> Iterator[None]:
        """Encode without post-processing, truncation and padding, so that offsets cover white space; then restore."""
        backend = self.backend
        after, apart = backend.post_processor, backend.encode_special_tokens
        backend.no_truncation()
        backend.no_padding()
        backend.post_processor, backend.encode_special_tokens = None, False
        try:
            yield
        finally:
            backend.post_processor, backend.encode_special_tokens = after, apart

    def _reencoded(self, text: Text, tokens: Tokens) -> Tokens:
        """Re-encode the stretches between the template's control tokens in which content spells a control token."""
        joined, first, start = Tokens(), 0, 0
        control_indices = [i for i, token in enumerate(tokens.ids) if self._is_control(text.text, token, tokens, i)]
        for i in [*control_indices, len(tokens.ids)]:
            end = tokens.starts[i] if i < len(tokens.ids) else len(text.text)
            part = text.part(start, end)
            joined.extend(self._encode_literal(part, start) if part.has_spelled else tokens.between(first, i))
            if i < len(tokens.ids):
                joined.extend(tokens.between(i, i + 1))
                first, start = i + 1, tokens.ends[i]
        return joined

    def _is_control(self, text: str, token: int, tokens: Tokens, i: int) -> bool:
        there = text[tokens.starts[i] : tokens.ends[i]].strip()
        return self.control.get(there) == token

    def _encode_literal(self, part: Text, start: int) -> Tokens:
        """Encode a stretch without control tokens of the template as text; ``start`` is its position in the text."""
        positions = [at for at, letter in enumerate(part.text) for _ in part.spelled.get(letter, letter)]
        anchor = _ANCHORS[0] if start and self._spaces_first_only else ""
        self.backend.encode_special_tokens = True
        try:
            encoding = self.backend.encode(anchor + part.plain, add_special_tokens=False)
            tokens = _tokens(encoding)
            if anchor:
                tokens = tokens.between(tokens.until(len(anchor)), len(tokens.ids), -len(anchor))
            ids = set(self.control.values())
            if any(token in ids for token in tokens.ids):  # the vocabulary's own merges make the control token
                tokens = self._encode_split(part.plain, ids)
        finally:
            self.backend.encode_special_tokens = False
        starts = [start + positions[min(at, len(positions) - 1)] for at in tokens.starts]
        ends = [start + (positions[at - 1] + 1 if at else 0) for at in tokens.ends]
        return Tokens(tokens.ids, starts, ends)

    def _encode_split(self, text: str, control: set[int]) -> Tokens:
        """Encode a text in pieces that split every control token it spells after the first letter."""
        assert self._control is not None
        joined, last = Tokens(), 0
        for end in [*(match.start() + 1 for match in self._control.finditer(text)), len(text)]:
            piece = _tokens(self.backend.encode(text[last:end], add_special_tokens=False))
            plain = [i for i, token in enumerate(piece.ids) if token not in control]
            joined.extend(Tokens(*([values[i] for i in plain] for values in (piece.ids, *_shifted(piece, last)))))
            last = end
        return joined

    @cached_property
    def _spaces_first_only(self) -> bool:
        """Whether the tokenizer adds a space before the first stretch of a text only, not after a control token."""
        token = next(iter(self.control), "")
        alone, behind = (self.backend.encode(text, add_special_tokens=False).ids for text in ("x", f"{token}x"))
        return bool(token) and alone != behind[1:]

    @cached_property
    def _writes_a_space(self) -> bool:
        alone, behind = (self.backend.encode(text, add_special_tokens=False).ids for text in ("x", "\nx"))
        return bool(alone != behind[-len(alone) :])

    def _split_at(self, text: Text, tokens: Tokens, spoken: Sequence[tuple[int, int]]) -> Tokens:
        """Split the encoding at the boundaries of answers where the tokens would otherwise differ."""
        wrong = {start for start, _ in spoken if tokens.straddles(start)}
        # A control token may absorb the white space after it, as Phi-3's do; it ends the answer all the same.
        wrong |= {end for _, end in spoken if tokens.straddles(end) and not self._ends_in_control(tokens, end)}
        wrong |= {start for start, _ in spoken if start not in wrong and not self._ends_alike(text, tokens, start)}
        if not wrong:
            return tokens
        joined = Tokens()
        bounds = [0, *sorted(wrong), len(text.text)]
        for start, end in pairwise(bounds):
            joined.extend(self._encode_continuation(text.part(start, end), start))
        return joined

    def _ends_in_control(self, tokens: Tokens, place: int) -> bool:
        """Whether the last token that starts before a position is a control token."""
        return tokens.ids[tokens.until(place) - 1] in self._control_ids

    def _ends_alike(self, text: Text, tokens: Tokens, place: int) -> bool:
        """Whether the tokens before a position equal those of a text that ends there.

        They can differ in white space: GPT-2's pattern makes two line breaks one token at the end of a text, and two
        tokens before a letter. Tokens before the last control token cannot depend on the position.
        """
        last = tokens.until(place)
        first = next((i for i in reversed(range(last)) if tokens.ids[i] in self._control_ids), 0)
        before = text.part(tokens.starts[first] if first else 0, place)
        if len(before.text) > _CACHED_LENGTH or before.has_spelled:
            return self._encode_text(before).ids == tokens.ids[first:last]
        if before.text not in self._cached_ids:
            self._cached_ids[before.text] = self._encode_text(before).ids
        return self._cached_ids[before.text] == tokens.ids[first:last]

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self.control.values())

    def _encode_continuation(self, part: Text, start: int) -> Tokens:
        """Encode a stretch as the continuation of a text; ``start`` is its position in that text."""
        for anchor in _ANCHORS if start and self._writes_a_space else ():
            tokens = self._encode_text(Text(anchor + part.text, part.spelled))
            if not tokens.straddles(len(anchor)):
                return tokens.between(tokens.until(len(anchor)), len(tokens.ids), start - len(anchor))
        tokens = self._encode_text(part)
        return tokens.between(0, len(tokens.ids), start)

    def _encode_text(self, text: Text) -> Tokens:
        tokens = _tokens(self.backend.encode(text.text, add_special_tokens=False))
        return self._reencoded(text, tokens) if text.has_spelled else tokens

    def _encode_without_offsets(self, text: Text, places: Sequence[int]) -> Tokens:
        """Encode stretch by stretch, with a tokenizer that gives no offsets."""
        joined = Tokens()
        bounds = sorted({0, len(text.text), *places})
        for start, end in pairwise(bounds):
            part = text.part(start, end)
            extra = {"split_special_tokens": True} if part.has_spelled else {}
            split = re.split(f"({self._control.pattern})", part.text) if self._control and extra else [part.text]
            for piece in filter(None, split):
                plain = Text(piece, text.spelled).plain
                is_control = piece in self.control
                options = {} if is_control else extra
                ids = list(self.tokenizer(plain, add_special_tokens=False, **options)["input_ids"])
                joined.extend(Tokens(ids, [start] * len(ids), [end] * len(ids)))
        return joined


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the tokenizer's special tokens, text to id."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {token.content: int(number) for number, token in added.items() if token.special}
    for token in tokenizer.all_special_tokens:
        special.setdefault(str(token), int(tokenizer.convert_tokens_to_ids(token)))
    return {token: number for token, number in special.items() if token.strip()}


def own_letters(text: str) -> dict[str, str]:
    """Return the private-use characters that a text contains itself, each standing for itself."""
    return {letter: letter for letter in text if ord(letter) >= PRIVATE[0]}


def _free(taken: Mapping[str, str]) -> Iterator[int]:
    for first in PRIVATE:
        yield from (code for code in range(first, first + 0xFFFE) if chr(code) not in taken)


def _shifted(tokens: Tokens, by: int) -> tuple[list[int], list[int]]:
    return [at + by for at in tokens.starts], [at + by for at in tokens.ends]


def _tokens(encoding: Any) -> Tokens:
    offsets = encoding.offsets
    return Tokens(list(encoding.ids), [start for start, _ in offsets], [end for _, end in offsets])
