"""One checkpoint in memory at a time, with the engine that samples from it; the next one takes its place.

Knows nothing of prompts, requests and what is kept of them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
import transformers

from pipeline.errors import PipelineError, Problem
from pipeline.models.forward import context_limit
from pipeline.models.generate.engines.batched import BatchedEngine
from pipeline.models.generate.engines.engine import Engine
from pipeline.models.generate.engines.generate import GenerateEngine
from pipeline.models.generate.engines.names import EngineName
from pipeline.models.generate.engines.vllm import VLLMEngine, vllm_version, why_no_vllm
from pipeline.models.generate.steps import Say
from pipeline.models.load.kernels import install_vllm
from pipeline.models.load.pretrained import WeightOptions, load_causal_lm, source_of, stored_bits
from pipeline.models.load.shell import load_shell
from pipeline.plain_data import JsonObject
from pipeline.stage import ResolvedInput, StageContext
from pipeline.training.arguments import frozen_weights
from pipeline.training.fitting import fit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Loaded(NamedTuple):
    """A checkpoint that can be sampled from.

    Attributes:
        model: its model; without weights if vLLM has them.
        vllm: vLLM with the checkpoint's weights; None for the other engines.
    """

    model: PreTrainedModel
    vllm: VLLMEngine | None = None

    def engine(self, name: EngineName, batch_size: int, say: Say) -> Engine:
        """Return an engine for the model.

        Args:
            name: the engine; of no effect in vLLM.
            batch_size: rows that our own loop decodes together.
            say: called once if the model's cache cannot be used.
        """
        if self.vllm is not None:
            return self.vllm
        return GenerateEngine(say) if name == "generate" else BatchedEngine(batch_size, say)


class ModelSlot:
    """Holds one checkpoint, in transformers or in vLLM, and frees it before it loads the next one.

    Attributes:
        device: where it computes.
        weights: how models of transformers hold their weights.
        load_s: seconds of all loading so far.
    """

    def __init__(self, ctx: StageContext) -> None:
        self._ctx = ctx
        self.device: str
        self.weights: WeightOptions
        self.device, self.weights = frozen_weights(ctx)
        self.load_s = 0.0
        self._held: tuple[ResolvedInput, bool, Loaded] | None = None

    def load(self, source: ResolvedInput, tokenizer: PreTrainedTokenizerBase, say: Say) -> Loaded:
        """Return a checkpoint in transformers.

        Args:
            source: the checkpoint.
            tokenizer: its tokenizer.
            say: gets notes on the model.

        Raises:
            PipelineError: it cannot be loaded.
        """
        if self._held is None or self._held[:2] != (source, False):
            started = time.perf_counter()
            self.free()
            quiet = replace(self._ctx, emit=lambda event: say(event.text))  # only rank 0 reaches the user
            model = load_causal_lm(source, trust_remote_code=self._ctx.trust_remote_code, **self.weights)
            fit(quiet, model, tokenizer, self.weights)
            self._held = (source, False, Loaded(model.to(self.device)))
            self.load_s += time.perf_counter() - started
        return self._held[2]

    def load_in_vllm(self, source: ResolvedInput, longest: int) -> Loaded:
        """Return a checkpoint in vLLM.

        Args:
            source: the checkpoint.
            longest: tokens of the longest prompt with its response.

        Raises:
            PipelineError: vLLM is not there, or cannot read the checkpoint or sample from it.
        """
        if self._held is None or self._held[:2] != (source, True):
            started = time.perf_counter()
            self.free()
            trusted, device_type = self._ctx.trust_remote_code, self.device.partition(":")[0]
            check_vllm(device_type)
            if bits := stored_bits(source, trusted):
                statement = f"`{source.name}` is kept quantised ({bits}), and engine is vllm"
                raise PipelineError(Problem(statement, "weights in fp32, bf16 or fp16", "set engine: batched"))
            shell, place = load_shell(source, trusted), source_of(source)
            engine = VLLMEngine.of_checkpoint(
                place.place,
                device=self.device,
                longest=min(longest, context_limit(shell) or longest),
                dtype=_DTYPES[self.weights["dtype"]],
                revision=place.revision,
                trust_remote_code=trusted,
            )
            self._held = (source, True, Loaded(shell, engine))
            self.load_s += time.perf_counter() - started
        return self._held[2]

    def facts(self, engine: EngineName) -> JsonObject:
        """Return what rounds the logits beside the model: device, number format, and the libraries that compute them.

        Our own decoding is not named: responses were kept of it before there was a choice.
        """
        device, is_ours = self.device, engine == "batched"
        return {
            "device": torch.cuda.get_device_name(device)
            if device != "cpu"
            else torch.backends.cpu.get_cpu_capability(),
            "dtype": str(self.weights["dtype"]),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            **({} if is_ours else {"engine": engine}),
            **({"vllm": vllm_version()} if engine == "vllm" else {}),
        }

    def free(self) -> None:
        """Free the memory of the checkpoint."""
        if self._held is not None and self._held[2].vllm is not None:
            self._held[2].vllm.close()
        self._held = None


def check_vllm(device_type: str) -> None:
    """Check that vLLM can sample from checkpoints on this machine.

    Raises:
        PipelineError: it is not installed, or not built for the device.
    """
    if missing := why_no_vllm(device_type):
        raise PipelineError(Problem(f"engine is vllm, but {missing}", "vLLM", install_vllm("engine")))
