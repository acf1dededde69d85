"""Initialises the process group of a stage: accelerate's `PartialState`, set up once before the stage starts.

transformers' trainers would set it up themselves, but with DeepSpeed on a CPU each would see a world size of 1.
"""

from __future__ import annotations

import os
from datetime import timedelta

from accelerate.state import PartialState

TIMEOUT = timedelta(minutes=30)
"""Timeout of a collective. A machine that is lost is noticed sooner (`launch/`)."""


def init_process_group(*, cpu: bool, deepspeed: bool) -> None:
    """Initialise the process group; does nothing in a process that was not launched as one of several ranks."""
    if "RANK" not in os.environ:
        return

    if PartialState._shared_state:
        return
    if deepspeed:
        if cpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            _skip_shm_compilation()
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    # With `cpu=True` accelerate ignores DeepSpeed. Given the backend, it joins the other ranks all the same.
    PartialState(cpu=cpu and not deepspeed, backend="gloo" if cpu else None, timeout=TIMEOUT)


def _skip_shm_compilation() -> None:
    """Keep DeepSpeed from compiling a shared-memory collective that only its inference engine uses.

    DeepSpeed would compile it into the user's home whenever it starts on a CPU. That takes half a minute, and fails
    without a C++ compiler or a writable home, as in a slim container. Without it DeepSpeed uses gloo's collectives.
    """
    import deepspeed.ops  # optional extra `deepspeed`

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
