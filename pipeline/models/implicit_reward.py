"""Implicit rewards: the log-ratio of a preference-trained policy and its reference as the score of a response.

Owns the pair of models: how it is loaded, and its arithmetic. Knows nothing of prompts or of the use of the scores.

Reference: Rafailov et al. 2023, arXiv:2305.18290, equation 5: r(x, y) = β log π(y|x) / π_ref(y|x) + β log Z(x). We
leave out Z, which all responses to one prompt share. With a weight below 1 on the reference the reward also holds the
policy's own log-probability, which is what sharpening rewards: Huang et al. 2024, arXiv:2412.01951.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from pipeline.artifacts.implicit_reward import (
    MODEL_FILES,
    REFERENCE_FOLDER,
    SETTINGS_FILE,
    ImplicitSettings,
    settings_of,
)
from pipeline.models.forward import context_limit
from pipeline.models.load.pretrained import WeightOptions, explained, load_causal_lm, quiet, source_of
from pipeline.models.logprobs import response_logprobs
from pipeline.stage import ResolvedInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ImplicitReward:
    """A policy and a reference of one tokenizer.

    Attributes:
        policy: the preference-trained causal language model.
        reference: the causal language model it is compared with.
        settings: factor of the log-ratio, and weight of the reference in it.
    """

    policy: PreTrainedModel
    reference: PreTrainedModel
    settings: ImplicitSettings

    @property
    def models(self) -> tuple[PreTrainedModel, PreTrainedModel]:
        """The two models."""
        return self.policy, self.reference

    @property
    def context(self) -> int | None:
        """The longest prompt and response together that both models can read, in tokens; None without a limit."""
        return min((limit for limit in map(context_limit, self.models) if limit is not None), default=None)

    def token_rewards(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], *, token_budget: int, precision: str
    ) -> list[list[float]]:
        """Return β · (log π_policy − w · log π_reference) of each token of each response, w the reference's weight.

        Args:
            prompts: token ids, one non-empty list per row.
            responses: token ids, end token included.
            token_budget: padded tokens in one forward pass.
            precision: compute precision, if it is lower than that of the weights.

        Raises:
            PipelineError: a prompt is empty, or a row is longer than the context of one of the models.
        """
        policy, reference = (
            response_logprobs(model, prompts, responses, token_budget=token_budget, precision=precision)
            for model in self.models
        )
        beta, weight = self.settings
        return [
            [beta * (one - weight * other) for one, other in zip(own, others, strict=True)]
            for own, others in zip(policy, reference, strict=True)
        ]


def load_implicit_reward(
    model_input: ResolvedInput, trust_remote_code: bool = False, **weights: Unpack[WeightOptions]
) -> ImplicitReward | None:
    """Load an implicit reward; None if the input is a model of another form.

    Args:
        model_input: artifact, folder or hub id.
        trust_remote_code: whether the repository may run its own Python.
        weights: how the weights are held; with `zero3` both models are sharded, and every rank must call this.

    Raises:
        PipelineError: as `load_causal_lm` and `settings_of`.
    """
    if not is_implicit_reward(model_input):
        return None
    folder = local_folder(model_input)
    settings = settings_of(folder)
    assert settings is not None, "it has its settings"
    places = (folder, folder / REFERENCE_FOLDER)
    policy, reference = (
        load_causal_lm(
            model_input.model_copy(update={"path": str(place)}), trust_remote_code=trust_remote_code, **weights
        )
        for place in places
    )
    return ImplicitReward(policy, reference, settings)


def is_implicit_reward(model_input: ResolvedInput) -> bool:
    """Return whether an artifact, a folder or a hub repository is an implicit reward, by its settings file.

    Raises:
        PipelineError: the hub answers with an error.
    """
    source = source_of(model_input)
    if source.is_folder:
        return (Path(source.place) / SETTINGS_FILE).is_file()
    with quiet(), explained(source, "reward model"):
        return _is_on_hub(source.place, source.revision)


@functools.cache
def _is_on_hub(place: str, revision: str | None) -> bool:
    try:
        hf_hub_download(place, SETTINGS_FILE, revision=revision)
    except (EntryNotFoundError, RepositoryNotFoundError):  # offline what is not cached counts as not there
        return False
    return True


def local_folder(model_input: ResolvedInput) -> Path:
    """Return the folder of a model and its tokenizer; that of a hub id is downloaded.

    Raises:
        PipelineError: the hub cannot be reached, or has no such model.
    """
    source = source_of(model_input)
    if source.is_folder:
        return Path(source.place)
    patterns = [*MODEL_FILES, SETTINGS_FILE, *(f"{REFERENCE_FOLDER}/{pattern}" for pattern in MODEL_FILES)]
    with quiet(), explained(source, "model"):
        return Path(snapshot_download(source.place, revision=source.revision, allow_patterns=patterns))
