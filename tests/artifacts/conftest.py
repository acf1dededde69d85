"""A store to write in, artifacts to put there, processes to kill, and a real S3 server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from pipeline.artifacts import Artifact, Store
from pipeline.artifacts.manifest import InputRecord

ROOT = Path(__file__).parents[2]


def fingerprint_of(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def record_of(artifact: Artifact, field: str = "model") -> InputRecord:
    manifest = artifact.manifest
    return InputRecord(
        field=field,
        ref=manifest.name,
        name=manifest.name,
        kind=manifest.kind,
        version=manifest.version,
        fingerprint=manifest.fingerprint,
    )


Make = Callable[..., Artifact]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def make() -> Make:
    def commit(
        store: Store,
        name: str = "sft",
        which: str = "1",
        *,
        files: Mapping[str, bytes] | None = None,
        parents: tuple[Artifact, ...] = (),
        **fields: Any,
    ) -> Artifact:
        """Commit an artifact whose fingerprint is that of ``which``; its payload is ``files``."""
        with store.work(name, fingerprint_of(f"{name} {which}")) as area:
            for path, content in (files if files is not None else {"rows.jsonl": f"{which}\n".encode()}).items():
                (area.payload / path).parent.mkdir(parents=True, exist_ok=True)
                (area.payload / path).write_bytes(content)
            given = {"kind": "sft", "makes": "report", "inputs": [record_of(p) for p in parents], **fields}
            return area.commit(**given)

    return commit


@pytest.fixture
def killed_at(tmp_path: Path) -> Callable[[int, Path, Callable[[], object]], bool]:
    """Return a function that does something in a child process which SIGKILLs itself at the n-th file operation.

    Operations (open, mkdir, rename, remove, rmdir, listing) count when they touch the given folder: the interpreter's
    own audit events announce each one just before it happens. The function returns False when the work ended first.
    """

    def run(instant: int, folder: Path, work: Callable[[], object]) -> bool:
        child = os.fork()
        if child == 0:
            seen = 0

            def audit(event: str, args: tuple[Any, ...]) -> None:
                nonlocal seen
                if event.startswith(("open", "os.", "shutil.")) and any(str(folder) in str(arg) for arg in args[:2]):
                    seen += 1
                    if seen == instant:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(audit)
            try:
                work()
            except BaseException as error:
                os.write(2, f"{error!r}\n".encode())
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return True
        assert os.WEXITSTATUS(status) == 0
        return False

    return run


@dataclass
class S3Server:
    """A running S3 server and one empty bucket."""

    url: str
    endpoint: str
    log: Path
    environment: dict[str, str]

    def puts(self) -> list[str]:
        """Return the key of every upload the server accepted into this bucket, in order."""
        bucket = self.url.removeprefix("s3://")
        lines = [line for line in self.log.read_text().splitlines() if f'"PUT /{bucket}/' in line and '" 200 ' in line]
        return [line.partition(f"/{bucket}/")[2].partition(" ")[0].partition("?")[0] for line in lines]

    def boto(self) -> Any:
        import boto3

        return boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1")


@pytest.fixture(scope="session")
def s3_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    port = free_port()
    log = tmp_path_factory.mktemp("s3") / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 800
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"moto server did not start: {log.read_text()}")
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", log
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture
def s3(s3_process: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A bucket of its own for each test; the environment says where it is, as a user's would."""
    endpoint, log = s3_process
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"bucket-{fingerprint_of(str(tmp_path))[:20]}"
    server = S3Server(f"s3://{bucket}", endpoint, log, settings)
    server.boto().create_bucket(Bucket=bucket)
    return server


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a piece of code in a fresh interpreter."""

    def run(code: str, *args: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, args)],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )

    return run
