"""Serves a checkpoint with OpenAI's chat completions, by `transformers serve`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from ports import free_port
from waiting import until


@contextlib.contextmanager
def served(folder: Path, home: Path) -> Iterator[str]:
    """Serve a checkpoint until the block ends; yield the base URL."""
    (home / "hub").mkdir(parents=True, exist_ok=True)  # without it the list of models is an error of the server
    port = free_port()
    line = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder)]
    line += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    with (home / "log").open("w") as log:
        server = subprocess.Popen(line, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            until(lambda: _is_up(port) or server.poll() is not None, "a server")
            assert server.poll() is None, (home / "log").read_text()
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
