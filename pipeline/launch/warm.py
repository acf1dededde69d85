"""Imports that the forkserver does once for the children it forks: torch, transformers, trl, matplotlib.

Imported by the forkserver only. It starts no thread and runs no tensor operation: both would break the forks.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import warnings

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore", category=FutureWarning)
gc.disable()  # imported objects are never freed: collecting among them would take a quarter of the time

_silence = io.StringIO()
with contextlib.suppress(ImportError), contextlib.redirect_stdout(_silence), contextlib.redirect_stderr(_silence):
    import datasets
    import peft
    import safetensors.torch
    import torch
    import transformers
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification, Trainer
    from trl import DPOTrainer, RewardTrainer, SFTTrainer

    datasets.disable_progress_bars()

    import pipeline.evaluation.report.page
    import pipeline.evaluation.reward_card.render
    import pipeline.models.load.pretrained
    import pipeline.stages
    import pipeline.training.loop

    pipeline.stages.load_all()

    # accelerate imports DeepSpeed with every trainer where it is installed. With CUDA only the child imports it:
    # DeepSpeed looks for the device, and an initialized CUDA driver does not survive a fork.
    if torch.version.cuda is None:
        import deepspeed

# Imported objects live as long as the process. Frozen, a collection in a child neither visits them nor copies pages.
gc.collect()
gc.freeze()
gc.enable()

__all__ = [
    "DPOTrainer",
    "LlamaForCausalLM",
    "LlamaForSequenceClassification",
    "RewardTrainer",
    "SFTTrainer",
    "Trainer",
    "deepspeed",
    "peft",
    "safetensors",
    "torch",
    "transformers",
]
