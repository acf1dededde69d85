"""Names of the engines, for recipes. Imports no torch."""

from __future__ import annotations

from typing import Literal

EngineName = Literal["batched", "generate", "vllm"]
"""Our own batched decoding, `model.generate` of transformers, and vLLM."""
