"""One loaded model answers prompts: token ids in, texts with their lengths, ends and log-probabilities out.

Evaluation and the kind `sample` answer by this. Knows nothing of prompts' origin or of scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from pipeline.models.batching import Progress
from pipeline.models.generate.decode import PLAIN_SAMPLING, GenerationSettings, decode
from pipeline.models.generate.sampling import Sampling
from pipeline.models.generate.steps import Say
from pipeline.models.logprobs import response_logprobs
from pipeline.models.tokenizer.contract import end_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FinishReason = Literal["eos", "stop", "max_new_tokens", "context"]
"""Why a response ends: at an end token, at a stop string, at the limit of tokens, or where the context is full."""


class Response(NamedTuple):
    """One response.

    Attributes:
        text: text without special tokens, cut before a stop string, without white space around it.
        ids: sampled tokens, the end token included; a stop string and what follows it too.
        finish_reason: why it ends.
    """

    text: str
    ids: list[int]
    finish_reason: FinishReason


@dataclass(frozen=True)
class Sampler:
    """A model with its tokenizer.

    Attributes:
        model: causal language model.
        tokenizer: its tokenizer.
        max_new_tokens: longest response.
        sampling: how tokens are chosen.
        seed: seed of the random numbers.
        stop: strings before which a text is cut.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    sampling: Sampling = PLAIN_SAMPLING
    seed: int = 0
    stop: Sequence[str] = ()

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        row_ids: Sequence[int],
        *,
        on_progress: Progress | None = None,
        say: Say | None = None,
    ) -> list[Response]:
        """Answer every prompt once.

        The random numbers of a prompt depend on the seed and its row id alone, so a subset of prompts gets the same
        responses.

        Args:
            prompts: token ids of each prompt.
            row_ids: identity of each prompt.
            on_progress: called after each batch.
            say: called once if the model's cache cannot be used.

        Raises:
            PipelineError: a prompt is empty or fills the context, or an option is out of range.
        """
        eos = end_ids(self.tokenizer, self.model)
        settings = GenerationSettings(self.max_new_tokens, eos, self.tokenizer.pad_token_id)
        settings = replace(settings, sampling=self.sampling, seed=self.seed)
        sampled = decode(self.model, prompts, settings, row_ids=row_ids, on_progress=on_progress, say=say)
        return [self._response(ids, eos) for ids in sampled]

    def _response(self, ids: list[int], eos: list[int]) -> Response:
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        cuts = [place for stop in self.stop if (place := text.find(stop)) >= 0]
        if cuts:
            return Response(text[: min(cuts)].strip(), ids, "stop")
        if ids and ids[-1] in eos:
            return Response(text.strip(), ids, "eos")
        return Response(text.strip(), ids, "max_new_tokens" if len(ids) >= self.max_new_tokens else "context")

    def log_probabilities(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Return the log-probability of each token of non-empty responses, at the temperature of the sampling."""
        temperature = 1.0 if self.sampling.greedy else self.sampling.temperature
        return response_logprobs(self.model, prompts, responses, temperature=temperature)
