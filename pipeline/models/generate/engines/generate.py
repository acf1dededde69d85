"""`model.generate` of transformers as an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig

from pipeline.models.forward import context_limit, evaluating
from pipeline.models.generate.decode import GenerationSettings, check_prompts, room_of, until_end
from pipeline.models.generate.engines.batched import BatchedEngine
from pipeline.models.generate.engines.engine import Sampled
from pipeline.models.generate.generation_config import without_generation_config
from pipeline.models.generate.steps import Say, cache_use, left_padded

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class GenerateEngine:
    """`model.generate` of transformers, for a GPU.

    Seeded per call by the settings' seed and the first row id, so a response depends on the other prompts of the call.
    Falls back to `BatchedEngine` for a model whose cache is not correct with left padding.

    Attributes:
        say: called once if the model's cache cannot be used.
    """

    say: Say | None = None

    def __call__(
        self,
        model: PreTrainedModel | PeftModel,
        prompts: Sequence[Sequence[int]],
        settings: GenerationSettings,
        row_ids: Sequence[int],
    ) -> Sampled:
        """Sample all prompts as one batch, padded on the left; those with less room in the context apart.

        Raises:
            PipelineError: a prompt is empty or fills the context, or an option is out of range.
        """
        if cache_use(model, prompts, settings.pad_id, self.say) != "padded":
            return BatchedEngine(say=self.say)(model, prompts, settings, row_ids)
        check_prompts(model, prompts, settings)
        limit = context_limit(model)
        rooms = [room_of(settings, prompt, limit) for prompt in prompts]
        responses: list[list[int]] = [[] for _ in prompts]
        for room in sorted(set(rooms), reverse=True):
            rows = [row for row, own in enumerate(rooms) if own == room]
            own_prompts, first = [prompts[row] for row in rows], row_ids[rows[0]]
            for row, response in zip(rows, _generate(model, own_prompts, settings, room, first), strict=True):
                responses[row] = response
        return Sampled(responses)


def _generate(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    room: int,
    first_row_id: int,
) -> list[list[int]]:
    """Return responses of at most ``room`` tokens, sampled as one batch."""
    sampling, ends = settings.sampling, settings.ends
    options = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    config = GenerationConfig(
        max_new_tokens=room,
        do_sample=not sampling.greedy,
        eos_token_id=ends or None,
        pad_token_id=settings.pad_id,
        **({} if sampling.greedy else options),
    )
    ids_BT, mask_BT = left_padded(prompts, settings.pad_id, model.device)
    devices = [model.device] if model.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.inference_mode(),
        evaluating(model),
        without_generation_config(model),
    ):
        torch.manual_seed(settings.seed * 1_000_003 + first_row_id)
        sequences_BT = model.generate(input_ids=ids_BT, attention_mask=mask_BT, generation_config=config)
    return [until_end(row, ends) for row in sequences_BT[:, ids_BT.shape[1] :].tolist()]
