"""What the warm parent imports once, so that a stage's child starts with it: torch, transformers, trl, matplotlib.

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
gc.disable()  # what the imports make, stays: looking for garbage in it costs a quarter of the time

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

    import pipeline.evaluation.page
    import pipeline.evaluation.reward_render
    import pipeline.models.load
    import pipeline.stages
    import pipeline.training.loop

    pipeline.stages.load_all()

    # accelerate imports DeepSpeed into every trainer where it is installed. Where torch has CUDA it stays in the child:
    # it looks for the device, and a driver that was started does not survive a fork.
    if torch.version.cuda is None:
        import deepspeed

# What was imported lives as long as the process: a collection in a child neither walks it nor copies its pages.
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
