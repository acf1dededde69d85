"""Sampling with vLLM in the training process, on the training GPU, through trl's `VLLMGeneration`.

The policy's weights (an adapter folded in) are pushed into vLLM before each rollout, and vLLM sleeps while the policy
trains. Its log-probabilities are not the trainer's to the last digit: the trainer scores the responses itself, and
weighs tokens by the ratio of the two (`tis_clip`). Needs a GPU and the extra `vllm`.

Reference: Kwon et al. 2023, arXiv:2309.06180.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from pipeline.ppo.policy import Policy
from pipeline.ppo.rollout import Sampled

MEMORY_SHARE = 0.3
"""Of the GPU's memory, for vLLM's weights and cache while it samples."""


def why_no_vllm(policy: Policy) -> str:
    """Return why vLLM cannot sample from a policy; empty when it can."""
    if policy.device.type != "cuda":
        return "there is no GPU"
    return "" if find_spec("vllm") is not None else "vLLM is not installed"


class VLLMEngine:
    """Samples one response per prompt with vLLM; reproducible only as far as vLLM is."""

    def __init__(self, model: Any, tokenizer: Any, max_new_tokens: int, temperature: float, stepper: Any) -> None:
        """Start vLLM.

        Args:
            model: the policy's, loaded from a folder vLLM can load too.
            tokenizer: its own.
            max_new_tokens: longest response.
            temperature: of sampling.
            stepper: may hold the weights in parts, with accelerate.
        """
        from accelerate import Accelerator
        from trl.generation.vllm_generation import VLLMGeneration

        self.generation = VLLMGeneration(
            model,
            getattr(stepper, "accelerator", None) or Accelerator(),
            tokenizer,
            mode="colocate",
            gpu_memory_utilization=MEMORY_SHARE,
            enable_sleep_mode=True,
            temperature=temperature,
            max_completion_length=max_new_tokens,
            logprobs=0,
        )
        self.temperature = temperature

    def __call__(
        self, model: Any, prompts: Sequence[Sequence[int]], *, seed: int, places: Sequence[int], greedy: bool = False
    ) -> Sampled:
        """Sample, with log-probabilities under vLLM's own law."""
        self.generation.temperature = 0.0 if greedy else self.temperature
        self.generation.generation_kwargs = {"seed": seed % 2**31}
        self.generation.sync_weights()
        _, responses, logps, _ = self.generation.generate([list(prompt) for prompt in prompts], None, 1)
        own = [[float(token[0]) for token in row] for row in logps] if logps is not None and not greedy else None
        return Sampled([list(row) for row in responses], own)
