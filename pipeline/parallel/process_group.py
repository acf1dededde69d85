"""How a stage's process joins the others: accelerate's state, set up once, before anything of the stage.

Trainers of transformers would set it up themselves; on a CPU with DeepSpeed they end up with one process each.
"""

from __future__ import annotations

import os
from datetime import timedelta

TIMEOUT = timedelta(minutes=30)
"""How long a process waits in a collective for the others; a machine that is lost is noticed sooner (`launch/`)."""


def init_process_group(*, cpu: bool, deepspeed: bool) -> None:
    """Join the processes of the run; does nothing for a process that was not started as one of several."""
    if "RANK" not in os.environ:
        return
    from accelerate.state import PartialState

    if PartialState._shared_state:
        return
    if deepspeed:
        if cpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            _spare_the_compiler()
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    # Asked for a CPU, accelerate forgets DeepSpeed; told its backend, it finds the other processes.
    PartialState(cpu=cpu and not deepspeed, backend="gloo" if cpu else None, timeout=TIMEOUT)


def _spare_the_compiler() -> None:
    """Keep DeepSpeed from compiling a collective that only its inference uses.

    It would do so whenever it starts on a CPU, into the user's home: half a minute, and an error where there is no C++
    compiler or no home to write to, as in a slim container. Without the collective it takes gloo's.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
