"""What the warm parent imports once, so that a stage's child starts with it: torch, transformers, trl and peft.

Imported by the forkserver only. It starts no thread and runs no tensor operation: both would break the forks.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore", category=FutureWarning)

with contextlib.suppress(ImportError), contextlib.redirect_stderr(io.StringIO()):
    import datasets
    import peft
    import safetensors.torch
    import torch
    import transformers
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification, Trainer
    from trl import DPOTrainer, RewardTrainer, SFTTrainer

    datasets.disable_progress_bars()

    import pipeline.stages

    pipeline.stages.load_all()

__all__ = [
    "DPOTrainer",
    "LlamaForCausalLM",
    "LlamaForSequenceClassification",
    "RewardTrainer",
    "SFTTrainer",
    "Trainer",
    "peft",
    "safetensors",
    "torch",
    "transformers",
]
