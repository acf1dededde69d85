"""An image really built, without a daemon or an image registry, and run: asked for, since it takes minutes and 7 GB."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ASKED = "TRUEUP_TEST_IMAGE"


def _why_not() -> str:
    if not os.environ.get(ASKED):
        return f"builds an image, minutes and 7 GB: ask for it with {ASKED}=1"
    for tool in ("buildah", "debootstrap"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    return "" if os.geteuid() == 0 else "debootstrap needs root"


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(_why_not()), reason=_why_not())]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for everything buildah keeps; gone afterwards."""
    folder = tmp_path_factory.mktemp("storage")
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.fixture(scope="module")
def built(storage: Path) -> str:
    """What the script said, building and running."""
    line = ["bash", str(ROOT / "docker" / "build.sh"), "--debootstrap", "bookworm", "--host-pip", "--torch-index", ""]
    ended = subprocess.run([*line, "--storage", str(storage), "--run"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended.stdout


@pytest.fixture(scope="module")
def inside(storage: Path, built: str) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Run a command in a container of the image; `user` stands for the image's own."""
    buildah = ["buildah", "--storage-driver", "vfs", "--root", f"{storage}/root", "--runroot", f"{storage}/run"]
    started = subprocess.run([*buildah, "from", "trueup"], capture_output=True, text=True, check=True)
    container = started.stdout.strip()

    def run(*command: str, user: str = "") -> subprocess.CompletedProcess[str]:
        chosen = ["--user", user] if user else []
        line = [*buildah, "run", "--isolation", "chroot", *chosen, container, "--", *command]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    yield run
    subprocess.run([*buildah, "rm", container], capture_output=True, check=True)


def test_the_script_builds_it_and_runs_doctor_and_the_first_stages(built: str) -> None:
    assert re.search(r"built trueup in \d+ min \d\d s", built)
    assert "everything needed is here" in built
    assert "done tokenizer@v1" in built and "done base@v1" in built
    assert "2 made, 0 from the store" in built


def test_everything_in_it_has_the_version_of_the_lock(inside: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    def pairs(text: str) -> dict[str, str]:
        requirements = re.findall(r"^([\w.-]+)==([^\s+]+)", text, re.M)  # a build of torch is `2.13.0+cpu`
        return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in requirements}

    frozen = pairs(inside("pip", "list", "--format", "freeze").stdout)
    locked = pairs((ROOT / "constraints.txt").read_text())
    assert len(frozen) > 60
    assert {name: version for name, version in frozen.items() if locked.get(name) != version}.keys() <= {
        "trueup",
        "pip",
    }


def test_its_user_is_not_root_and_any_other_may_run_it(
    inside: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    assert inside("id", "-u").stdout.strip() == "1000"
    assert inside("sh", "-c", "echo > /opt/trueup/x").returncode != 0
    made = inside("trueup", "new", "--example", "quickstart", "demo", user="4242:4242")
    assert made.returncode == 0, made.stderr
    checked = inside("trueup", "check", "demo/recipes/quickstart.yaml", user="4242:4242")
    assert checked.returncode == 0, checked.stderr


def test_it_says_how_it_is_well(inside: Callable[..., subprocess.CompletedProcess[str]], storage: Path) -> None:
    """The health check is in the image, and its command works there."""
    configs = [file for file in (storage / "root").rglob("*") if file.is_file() and file.stat().st_size < 100_000]
    texts = [file.read_text(errors="replace") for file in configs if "vfs-images" in str(file)]
    command = "CUDA_VISIBLE_DEVICES= trueup doctor"
    assert any(f'"Healthcheck":{{"Test":["CMD-SHELL","{command}"]' in text for text in texts)
    well = inside("sh", "-c", f"TRUEUP_STORE=own {command}")  # `store` may be another user's by now
    assert well.returncode == 0, well.stdout
    assert inside("sh", "-c", f"TRUEUP_STORE=/proc/nowhere {command}").returncode == 1
