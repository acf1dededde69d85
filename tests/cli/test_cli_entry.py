"""The command as a process: what it imports, how it ends, and that its reference is current."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from pipeline import __version__
from pipeline.artifacts import Store
from pipeline.cli.app import command_of
from pipeline.cli.command_table import VERBS, verbs_by_topic

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "transformers", "trl", "datasets", "peft", "numpy", "scipy", "matplotlib", "fsspec"}

# Calls the entry point, then tells which modules were loaded.
IMPORTS = """
import json, sys
sys.argv[0] = "trueup"
from pipeline.cli import main
try:
    main()
except SystemExit as ended:
    code = ended.code
print(json.dumps({"code": code, "modules": sorted(sys.modules)}), file=sys.stderr)
"""


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("TRUEUP_STORE", "TRUEUP_DEBUG")}
    return {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


def _process(*args: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pipeline.cli", *args]
    return subprocess.run(line, cwd=cwd, env=_environment(), capture_output=True, text=True, check=False, **options)


def _modules(*args: str, cwd: Path, code: int = 0) -> set[str]:
    ended = subprocess.run(
        [sys.executable, "-c", IMPORTS, *args], cwd=cwd, env=_environment(), capture_output=True, text=True, check=True
    )
    told = json.loads(ended.stderr.splitlines()[-1])
    assert told["code"] == code, ended.stderr
    return set(told["modules"])


def _imported(*args: str, cwd: Path) -> set[str]:
    return {name.partition(".")[0] for name in _modules(*args, cwd=cwd)}


_VERB_MODULES = {f"pipeline.cli.verbs.{entry.module}" for entry in VERBS.values()}


def _verb_modules(*args: str, cwd: Path, code: int = 0) -> set[str]:
    return _VERB_MODULES & _modules(*args, cwd=cwd, code=code)


def test_help_imports_nothing_but_the_command(tmp_path: Path) -> None:
    assert not _imported("--help", cwd=tmp_path) & {*HEAVY, "pydantic", "rich", "ruamel"}


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_imports_nothing_heavy(verb: str, tmp_path: Path) -> None:
    assert not _imported(verb, "--help", cwd=tmp_path) & HEAVY


@pytest.mark.parametrize(
    ("line", "code"), [(["nosuch"], 2), (["--version"], 0), ([], 0), (["--show-completion", "bash"], 0)]
)
def test_what_names_no_verb_imports_no_verb(
    line: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # else the shell that runs the tests counts
    assert not _verb_modules(*line, cwd=tmp_path, code=code)
    assert _verb_modules("new", "--help", cwd=tmp_path) == {"pipeline.cli.verbs.new"}


def test_completing_verbs_imports_none_of_them(tmp_path: Path) -> None:
    asked = {"_TRUEUP_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "trueup l"}
    script = IMPORTS.replace('print(json.dumps({"code"', 'print(json.dumps({"completed": True, "code"')
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**_environment(), **asked},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [word for word in ("ls", "lineage", "labels") if f'"{word}":' in ended.stdout] == ["ls", "lineage", "labels"]
    assert "stage-job" not in ended.stdout
    told = json.loads(ended.stderr.splitlines()[-1])
    assert not _VERB_MODULES & set(told["modules"])


@pytest.mark.parametrize("verb", VERBS)
def test_the_table_says_what_the_docstring_of_a_verb_says(verb: str) -> None:
    entry, command = VERBS[verb], command_of(VERBS[verb])
    assert command.help is not None
    assert entry.summary == command.help.splitlines()[0]
    assert (command.name, command.hidden) == (entry.name, entry.is_hidden)


def test_ls_and_show_import_nothing_heavy(stocked: Store, tmp_path: Path) -> None:
    assert not _imported("ls", cwd=tmp_path) & HEAVY
    assert not _imported("show", "report", cwd=tmp_path) & HEAVY
    assert not _imported("lineage", "report", cwd=tmp_path) & HEAVY


@pytest.mark.parametrize("verb", ["plan", "check"])
def test_planning_imports_nothing_heavy(tiny_recipe: Path, verb: str) -> None:
    assert not _imported(verb, tiny_recipe.name, cwd=tiny_recipe.parent) & HEAVY


def test_version_and_help(tmp_path: Path) -> None:
    assert _process("--version", cwd=tmp_path).stdout == f"trueup {__version__}\n"
    shown = _process("--help", cwd=tmp_path)
    assert shown.returncode == 0
    topics = [line for line in shown.stdout.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert topics == ["Options:", "Recipes:", "Checkpoints:", "Store:", "Preferences:", "Set-up:"]
    assert _process(cwd=tmp_path).stdout == shown.stdout


def test_exit_codes_of_the_process(stocked: Store, tmp_path: Path) -> None:
    assert _process("ls", cwd=tmp_path).returncode == 0
    assert _process("show", "nothing", cwd=tmp_path).returncode == 2
    (stocked.artifacts("rm")[0].path / "head.txt").write_text("xx")
    assert _process("verify", cwd=tmp_path).returncode == 1


def test_a_reader_that_leaves_a_pipe_is_no_error(stocked: Store, tmp_path: Path) -> None:
    line = f"{sys.executable} -m pipeline.cli ls --json | head -n 1; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=_environment(), capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == ["[", "0"]
    assert ended.stderr == ""


def test_ctrl_c_says_stopped(stocked: Store, tmp_path: Path) -> None:
    # `generate` waits for its prompt on standard input; SIGINT comes while it does.
    script = (
        "import os, signal, sys, time\n"
        "from pipeline.cli import main\n"
        "class Waiting:\n"
        "    def isatty(self): return False\n"
        "    def read(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(60)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.stdin = Waiting()\n"
        "sys.argv = ['trueup', 'generate', 'sft']\n"
        "main()\n"
    )
    waiting = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env=_environment(), stderr=subprocess.PIPE, text=True
    )
    _, told = waiting.communicate(timeout=800)
    assert waiting.returncode == 130
    assert told.strip() == "stopped"


def test_help_lists_verbs_as_people_come_to_need_them(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "--help"],
        cwd=tmp_path,
        env=_environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    verbs = [line.split()[0] for line in shown.splitlines() if line.startswith("  ") and line[2].isalpha()]
    expected = [entry.name for entries in verbs_by_topic().values() for entry in entries]
    assert [verb for verb in verbs if verb in expected] == expected
    assert expected[:3] == ["run", "plan", "check"]


def test_an_unexpected_error_is_one_line_and_a_traceback_on_request(
    trueup: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise LookupError("no such kind\nand more")

    monkeypatch.setattr("pipeline.cli.verbs.schema.json_schema", broken)
    args = ("schema",)
    told = trueup(*args)
    assert told.exit_code == 1
    assert told.stderr == "LookupError: no such kind. Run with --debug for the traceback\n"
    for line in (("--debug", *args), (*args, "--debug")):
        assert "Traceback (most recent call last)" in trueup(*line).stderr
    assert "Traceback" in trueup(*args, env={"TRUEUP_DEBUG": "1"}).stderr


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("missing/recipe.json", "missing/recipe.json is not there and cannot be made"),
        (".", ". is a folder; expected a file. Name a file"),
    ],
)
def test_a_file_that_cannot_be_written_is_bad_input(trueup: Callable[..., Result], out: str, said: str) -> None:
    told = trueup("schema", "--out", out)
    assert told.exit_code == 2
    assert told.stderr.startswith(said)
    assert told.stderr.count("\n") == 1


def test_debug_shows_the_traceback_of_a_problem_too(trueup: Callable[..., Result], stocked: Store) -> None:
    assert "Traceback" not in trueup("show", "none").stderr
    told = trueup("show", "none", "--debug")
    assert "Traceback" in told.stderr
    assert told.exit_code == 2


def test_the_reference_is_current(trueup: Callable[..., Result]) -> None:
    current = trueup("docs").stdout
    assert current == (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), "run `make docs`"
    for verb in ("run", "plan", "check", "new", "schema", "ls", "show", "lineage", "diff", "verify", "tag", "gc"):
        assert f"### trueup {verb}\n" in current
    for verb in ("push", "pull", "generate", "chat", "evaluate", "compare", "doctor"):
        assert f"### trueup {verb}\n" in current
    assert "trueup docs" not in current


def test_completion_scripts_can_be_shown(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "pipeline.cli"],
        cwd=tmp_path,
        env={**_environment(), "_TRUEUP_COMPLETE": "source_bash"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "_TRUEUP_COMPLETE=complete_bash" in shown.stdout


def test_refs_and_recipes_are_completed(stocked: Store, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("stages: {}\n")

    def completions(line: str) -> list[str]:
        ended = subprocess.run(
            [sys.executable, "-m", "pipeline.cli"],
            cwd=tmp_path,
            env={
                **_environment(),
                "_TRUEUP_COMPLETE": "complete_bash",
                "COMP_WORDS": line,
                "COMP_CWORD": str(len(line.split(" ")) - 1),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return ended.stdout.split()

    assert completions("trueup show s") == ["sft"]
    assert completions("trueup show sft@") == ["sft@v1", "sft@v2"]
    assert completions("trueup plan m") == ["mine.yaml"]
    assert completions("trueup li") == ["lineage"]


def test_ctrl_c_while_text_is_executed_is_130_too(stocked: Store, tmp_path: Path) -> None:
    # The interpreter marks such an interrupt as one that nobody handled, and ended by the signal: -2.
    script = (
        "import atexit, sys\n"
        "from pipeline.cli import main\n"
        "class Interrupted:\n"
        "    def isatty(self): return False\n"
        "    def read(self): exec('raise KeyboardInterrupt')\n"
        "atexit.register(print, 'tidied up')\n"
        "sys.stdin = Interrupted()\n"
        "sys.argv = ['trueup', 'generate', 'sft']\n"
        "main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=_environment(), capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr, ended.stdout) == (130, "stopped\n", "tidied up\n")


def _at(module: str, does: str, argument: str = "--help") -> str:
    """Return a program that runs `trueup` with one argument and does something when a module is first looked for."""
    return (
        "import os, signal, sys\n"
        "from importlib.abc import MetaPathFinder\n"
        "class Finder(MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}:\n"
        f"            sys.meta_path.remove(self); {does}\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # the shell of the tests may ignore it
        "sys.meta_path.insert(0, Finder())\n"
        f"sys.argv = ['trueup', {argument!r}]\n"
        "from pipeline.cli import main\n"
        "main()\n"
    )


@pytest.mark.parametrize(
    ("module", "argument"),
    [
        ("pipeline.cli.app", "--help"),
        ("typer", "--help"),
        ("pipeline.errors", "--help"),
        ("pipeline.cli.verbs.store", "ls"),  # the module of a verb
        ("pipeline.artifacts", "ls"),
    ],
)
def test_ctrl_c_during_the_commands_own_imports_says_stopped(module: str, argument: str, tmp_path: Path) -> None:
    script = _at(module, "os.kill(os.getpid(), signal.SIGINT)", argument)
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=_environment(), capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "stopped\n")


def test_ctrl_c_at_any_early_moment_shows_no_traceback(tmp_path: Path) -> None:
    # The signal comes some milliseconds after the first import. Whichever moment that is, the process either stops
    # without a traceback, or had already printed all of its help.
    shown = _process("--help", cwd=tmp_path).stdout
    script = _at("pipeline.cli.app", "os.write(2, b'.')")
    for delay_ms in (0, 3, 10, 20, 40, 80, 160):
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        assert process.stderr.read(1) == b"."
        time.sleep(delay_ms / 1000)
        process.send_signal(signal.SIGINT)
        out, told = process.communicate(timeout=120)
        assert b"Traceback" not in told
        assert process.returncode == 130 or (process.returncode, out.decode()) == (0, shown)


def test_a_job_in_the_background_still_ignores_ctrl_c(tmp_path: Path) -> None:
    # As a shell without job control starts `trueup … &`.
    script = _at("typer", "os.kill(os.getpid(), signal.SIGINT)").replace("signal.default_int_handler", "signal.SIG_IGN")
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=_environment(), capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
