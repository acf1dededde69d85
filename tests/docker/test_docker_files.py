"""What stands in `docker/`: everything pinned by the lock, nobody is root, and only commands that exist."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

from pipeline.cli.verbs import app as app_of_verbs
from pipeline.launch.local import GRACE_S

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "docker" / "build.sh"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERBS = set(typer.main.get_command(app_of_verbs).commands)  # type: ignore[attr-defined]


def _name(requirement: str) -> str:
    """Return the package of a line such as `trl>=1.16,<1.17`, as indexes write it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


LOCKED = {_name(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")}


def _arguments(dockerfile: list[Any]) -> dict[str, str]:
    return dict(item.rest.partition("=")[::2] for item in dockerfile if item.word == "ARG" and "=" in item.rest)


def _last(dockerfile: list[Any], word: str) -> str:
    last = dockerfile[-1].stage
    return [item.rest for item in dockerfile if item.word == word and item.stage == last][-1]


def test_pip_installs_only_under_the_lock(dockerfile: list[Any]) -> None:
    installs = [i for i, item in enumerate(dockerfile) if item.word == "RUN" and "pip install" in item.rest]
    assert len(installs) == 3
    for i in installs:
        before = [item for item in dockerfile[:i] if item.stage == dockerfile[i].stage]
        workdir = next(item.rest for item in before if item.word == "WORKDIR")
        assert ("COPY", "constraints.txt ./") in {(item.word, item.rest) for item in before}
        assert any(item.word == "ENV" and f"PIP_CONSTRAINT={workdir}/constraints.txt" in item.rest for item in before)
        assert "--mount=type=cache,target=/var/cache/pip" in dockerfile[i].rest
    assert "PIP_CACHE_DIR=/var/cache/pip" in " ".join(item.rest for item in dockerfile if item.word == "ENV")


def test_the_lock_has_a_version_of_all_that_is_asked_for() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    asked = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"], *extras["s3"]]
    asked += [*extras["deepspeed"], *extras["collect"], "setuptools"]  # the last one by torch
    assert {_name(line) for line in asked} - LOCKED == set()


def test_the_image_runs_trueup_and_is_not_root(dockerfile: list[Any]) -> None:
    assert json.loads(_last(dockerfile, "ENTRYPOINT")) == ["trueup"]
    arguments = _arguments(dockerfile)
    assert _last(dockerfile, "USER") == "${UID}:${UID}"
    assert int(arguments["UID"]) > 0  # a number, so that a cluster can see that it is not root
    after = dockerfile[[i for i, item in enumerate(dockerfile) if item.word == "USER"][-1] + 1 :]
    assert {item.word for item in after} == {"HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
    health = _last(dockerfile, "HEALTHCHECK").partition("CMD ")[2].split()
    assert health[-2] == "trueup" and health[-1] in VERBS


def test_every_stage_stands_on_the_base_that_was_asked_for(dockerfile: list[Any]) -> None:
    named = {"${BASE}"}
    for item in dockerfile:
        if item.word == "FROM":
            source, *name = item.rest.split(" AS ")
            assert source in named
            named.update(name)


def test_what_an_image_is_made_of_reaches_the_build_and_nothing_else_does() -> None:
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]

    def is_sent(path: str) -> bool:
        sent = True
        for pattern in patterns:
            bare = pattern.removeprefix("!").removeprefix("**/")
            parts = Path(path).parts
            targets = parts if "**/" in pattern else ["/".join(parts[: i + 1]) for i in range(len(parts))]
            if any(fnmatch.fnmatch(target, bare) for target in targets):
                sent = pattern.startswith("!")
        return sent

    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [*wheel["packages"], *wheel["force-include"], *PROJECT["project"]["license-files"]]
    needed += [PROJECT["project"]["readme"], "pyproject.toml", "constraints.txt", "docker/requirements.py"]
    assert [path for path in needed if not is_sent(path)] == []
    kept = [".git/config", ".venv/bin/python", "store/sft/1/model.safetensors", "tests/conftest.py", "docker/build.sh"]
    kept += [".env", "data/own.jsonl", "pipeline/__pycache__/runner.pyc"]
    assert [path for path in kept if is_sent(path)] == []


def test_dependencies_come_from_pyproject() -> None:
    def run(extras: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "docker/requirements.py", extras]
        text = (ROOT / "pyproject.toml").read_text()
        return subprocess.run(line, input=text, cwd=ROOT, capture_output=True, text=True, check=False)

    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["deepspeed"], *extras["s3"]]
    assert run("deepspeed, s3").stdout.splitlines() == wanted
    assert run("").stdout.splitlines() == PROJECT["project"]["dependencies"]
    unknown = run("s3,vlm")
    assert unknown.returncode == 1 and unknown.stdout == ""
    assert unknown.stderr.startswith("EXTRAS names vlm, expected some of s3, deepspeed")


@pytest.fixture(scope="module")
def compose() -> Any:
    return YAML(typ="safe").load((ROOT / "docker" / "compose.yaml").read_text())


def _ours(compose: Any) -> list[Any]:
    return [service for name, service in compose["services"].items() if name != "postgres"]


def test_compose_builds_this_image_with_the_dockerfiles_own_arguments(compose: Any, dockerfile: list[Any]) -> None:
    arguments = _arguments(dockerfile)
    for service in _ours(compose):
        build = service["build"]
        context = (ROOT / "docker" / build["context"]).resolve()
        assert context == ROOT and (context / build["dockerfile"]).is_file()
        for name, value in build["args"].items():
            default = re.fullmatch(rf"\$\{{{name}:?-(.*)\}}", value)
            assert default is not None and default[1] == arguments[name]


def test_compose_runs_commands_that_exist_and_lets_them_save(compose: Any, dockerfile: list[Any]) -> None:
    home = re.search(r"HOME=(\S+)", _last(dockerfile, "ENV"))
    assert home is not None
    assert set(compose["services"]) == {"run", "run-gpu", "collect", "postgres"}
    for service in _ours(compose):
        assert "entrypoint" not in service
        assert service["command"][0] in VERBS
        assert int(service["stop_grace_period"].removesuffix("s")) > GRACE_S
        places = [volume.rpartition(":")[2] for volume in service["volumes"]]
        assert places == [_last(dockerfile, "WORKDIR"), f"{home[1]}/.cache/huggingface"]
        assert places[1] in next(item.rest for item in dockerfile if "install -d" in item.rest)  # a user may write it
        assert not service["user"].startswith(("0", "root"))
    gpu = compose["services"]["run-gpu"]
    assert gpu["profiles"] == ["gpu"]  # a machine without one runs the other
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_compose_has_the_labelling_app_with_a_database_that_wants_a_password(compose: Any) -> None:
    app, database = (compose["services"][name] for name in ("collect", "postgres"))
    assert app["profiles"] == database["profiles"] == ["collect"]  # a run needs neither
    assert app["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert database["environment"]["POSTGRES_PASSWORD"] == "${POSTGRES_PASSWORD-}"  # empty: the server refuses to start
    options = {word for word in app["command"] if word.startswith("--")}
    command = typer.main.get_command(app_of_verbs).commands["collect"]  # type: ignore[attr-defined]
    assert options <= {name for parameter in command.params for name in parameter.opts}
    assert app["ports"][0].startswith("${PORT:-127.0.0.1:")  # nobody else's, unless asked for


def test_compose_itself_reads_the_file() -> None:
    if shutil.which("docker-compose") is None:
        pytest.skip("docker-compose is not installed")
    line = ["docker-compose", "-f", "docker/compose.yaml", "--profile", "gpu", "--profile", "collect", "config"]
    around = {**os.environ, "POSTGRES_PASSWORD": "word"}
    ended = subprocess.run(line, cwd=ROOT, env=around, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    resolved = YAML(typ="safe").load(ended.stdout)
    assert resolved["services"]["run"]["user"] == "1000:1000"
    assert resolved["services"]["run"]["build"]["args"]["EXTRAS"] == "s3,deepspeed,collect"
    ledger = resolved["services"]["collect"]["environment"]["TRUEUP_LEDGER"]
    assert ledger == "postgresql+psycopg://trueup:word@postgres/trueup"


def _build(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", BUILD, *args], capture_output=True, text=True, check=False)


def test_the_script_is_clean_and_tells_its_options() -> None:
    told = _build("--help")
    assert told.returncode == 0 and told.stdout.startswith("Usage: docker/build.sh [OPTIONS]")
    cases = re.findall(r"--[a-z-]+", re.search(r"case \$1 in\n(.*?)\*\) fail", BUILD.read_text(), re.S)[1])
    assert set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", told.stdout, re.M)) == set(cases)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed; the options were compared")
    checked = subprocess.run(["shellcheck", BUILD], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--tga", "x"), "unknown option --tga; see docker/build.sh --help"),
        (("--tag",), "--tag needs a value; see docker/build.sh --help"),
        (("--mount", "certs"), "--mount is certs, expected HOST:PATH, both absolute"),
        (("--mount", "/nowhere:/etc"), "--mount names /nowhere, which does not exist"),
        (("--base", "a", "--debootstrap", "b"), "both --base and --debootstrap given, expected one"),
    ],
)
def test_a_wrong_line_says_so_before_anything_is_built(args: tuple[str, ...], said: str) -> None:
    ended = _build(*args)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"build.sh: {said}\n")
