"""The checkpoints that answer in live dialogues, each loaded once, sampled by the project's own decoding.

The app runs this, not the stage: people talk before the stage has its labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from pipeline.errors import PipelineError, Problem
from pipeline.kind.compute import ComputeSettings
from pipeline.models.forward import context_limit
from pipeline.models.generate.decode import GenerationSettings, decode
from pipeline.models.generate.sampling import Sampling
from pipeline.models.load.fitting import fit_embedding
from pipeline.models.load.pretrained import Precision, load_causal_lm, load_tokenizer
from pipeline.models.tokenizer.contract import end_ids
from pipeline.records.shapes.turns import Turn
from pipeline.stage import ResolvedInput
from pipeline.stages.collect.config import Live
from pipeline.training.data.encoding import encode_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class _Loaded(NamedTuple):
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


class CheckpointResponder:
    """Checkpoints that answer.

    Args:
        sources: the checkpoints.
        live: how they are sampled.
        compute: device, precision and threads; a CPU computes in fp32, a GPU by default in bf16 where it can.
        say: told which checkpoint is being loaded.
        trust_remote_code: whether a model repository may run its own Python.

    Raises:
        PipelineError: a checkpoint cannot be loaded, or has no chat template.
    """

    def __init__(
        self,
        sources: Sequence[ResolvedInput],
        live: Live,
        compute: ComputeSettings,
        say: Callable[[str], None],
        *,
        trust_remote_code: bool = False,
    ) -> None:
        self.live, self._say = live, say
        if compute.threads:
            torch.set_num_threads(compute.threads)
        self._device, self._dtype = _device_and_dtype(compute)
        self._loaded = [self._load(source, trust_remote_code) for source in sources]

    def answer(
        self, model: int, dialogues: Sequence[Sequence[Turn]], row_ids: Sequence[int], seed: int
    ) -> list[str | None]:
        """Return an answer to each dialogue; None where fewer tokens are left than an answer may have.

        Of a short context, the last quarter is kept for the answer.
        """
        loaded, tokenizer = self._loaded[model]
        limit = context_limit(loaded)
        encoded = encode_prompts(tokenizer, [{"prompt": list(turns)} for turns in dialogues])
        if encoded.faults:
            raise PipelineError(Problem(f"the dialogue {encoded.faults[0].reason}"))
        prompts = [row["prompt_ids"] for row in encoded.rows]
        room = self.live.max_new_tokens if limit is None else min(self.live.max_new_tokens, limit // 4)
        fitting = [i for i, ids in enumerate(prompts) if limit is None or len(ids) + room <= limit]
        sampling = Sampling(temperature=self.live.temperature, top_p=self.live.top_p)
        ends, pad = end_ids(tokenizer, loaded), tokenizer.pad_token_id
        settings = GenerationSettings(self.live.max_new_tokens, ends, pad, sampling=sampling, seed=seed)
        rows = [row_ids[i] for i in fitting]
        sampled = decode(loaded, [prompts[i] for i in fitting], settings, row_ids=rows, say=self._say)
        texts: list[str | None] = [None] * len(prompts)
        for i, ids in zip(fitting, sampled, strict=True):
            texts[i] = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
        return texts

    def _load(self, source: ResolvedInput, trust_remote_code: bool) -> _Loaded:
        self._say(f"loading {source.ref}")
        tokenizer = load_tokenizer(source, trust_remote_code)
        if not tokenizer.chat_template:
            remedy = "a checkpoint of an sft stage has one"
            raise PipelineError(Problem(f"`{source.ref}` has no chat template", "one, to talk with it", remedy))
        model = load_causal_lm(source, self._dtype, trust_remote_code)
        note = fit_embedding(model, tokenizer)
        if note:
            self._say(note)
        return _Loaded(model.to(self._device).eval(), tokenizer)


def _device_and_dtype(compute: ComputeSettings) -> tuple[str, Precision]:
    has_gpu = torch.cuda.is_available()
    if compute.device == "cuda" and not has_gpu:
        statement = "compute.device is cuda"
        raise PipelineError(Problem(statement, "this machine has no CUDA device", "use `compute.device: auto`"))
    if compute.device == "cpu" or not has_gpu:
        return "cpu", "fp32"
    if compute.precision != "auto":
        return "cuda", compute.precision
    return "cuda", "bf16" if torch.cuda.is_bf16_supported() else "fp16"
