"""A prompt and a response to it, as tokens: what a reward model scores. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class PromptedResponse(NamedTuple):
    """The tokens of a prompt and of one response to it.

    Attributes:
        ids: token ids of the prompt, then of the response.
        prompt_tokens: tokens of the prompt.
    """

    ids: list[int]
    prompt_tokens: int

    @classmethod
    def of(cls, prompt: Sequence[int], response: Sequence[int]) -> PromptedResponse:
        """Join the tokens of a prompt and of a response."""
        return cls([*prompt, *response], len(prompt))

    @property
    def prompt_ids(self) -> list[int]:
        """The tokens of the prompt."""
        return self.ids[: self.prompt_tokens]

    @property
    def response_ids(self) -> list[int]:
        """The tokens of the response."""
        return self.ids[self.prompt_tokens :]
