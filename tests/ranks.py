"""Runs a test's file as the processes of a run, forked as the launcher's are from the parent that has the libraries."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.distributed import TCPStore

from pipeline.launch.local import warm_up


@contextmanager
def rendezvous() -> Iterator[dict[str, str]]:
    """Yield the environment with which ranks meet at a store of this process, as a stage's ranks do at their agent's.

    A store of rank 0 would go with rank 0, which may end while another rank still asks it. A free port that somebody
    else opens later may be taken by then.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def run_ranks(script: str, *arguments: str, count: int = 2) -> None:
    """Run ``script`` as ``count`` ranks with ``arguments``, and assert that all end well."""
    warm_up()
    context = multiprocessing.get_context("forkserver")
    with rendezvous() as meeting, tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, str(rank)) for rank in range(count)]
        running = []
        for rank, log in enumerate(logs):
            spread = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            around = {**meeting, **{name: str(value) for name, value in spread.items()}}
            running.append(context.Process(target=_run_script, args=(script, arguments, around, str(log))))
        try:
            for process in running:
                process.start()
            for process in running:
                process.join(timeout=800)
        finally:
            for process in running:
                process.kill()
                process.join()
        said = "\n".join(log.read_text(errors="replace")[-3000:] for log in logs if log.exists())
    assert [process.exitcode for process in running] == [0] * count, said


def _run_script(script: str, arguments: tuple[str, ...], environment: dict[str, str], log: str) -> None:
    os.environ.update(environment)
    with Path(log).open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def be_rank(main: Callable[..., None]) -> None:
    """Be one of the processes, and end as a stage's ranks do: at once, without taking the interpreter down.

    A thread of gloo may still hold Python objects then, and aborts the process when it finds no interpreter.
    """
    main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
