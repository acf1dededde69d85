"""Bad input: every line said, and the exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from pipeline.artifacts import Store

STORED = "stored are dpo, report, rm, sft"

CASES = [
    (["rnu"], "no such command 'rnu'. Did you mean 'run'?; see `trueup --help`"),
    (["run"], "missing argument 'RECIPE'; see `trueup run --help`"),
    (["ls", "--foo"], "no such option: --foo; see `trueup ls --help`"),
    (["gc", "--keep-last", "x"], "invalid value for '--keep-last': Input should be a valid integer, "
     "unable to parse string as an integer; see `trueup gc --help`"),
    (["gc", "--keep-last", "-1"], "keep_last is -1; it must be 0 or more"),
    (["run", "none.yaml"], "recipe `none.yaml` does not exist. Did you mean `one.yaml`?"),
    (["plan", "broken.yaml"], "broken.yaml:2: not valid YAML: expected ',' or '}}', but got '<stream end>'"),
    (["plan", "list.yaml"], "list.yaml:1: the recipe is not a mapping; expected keys such as data: and stages:"),
    (["show", "spt"], f"{{store}}: no artifact `spt`; {STORED}. Did you mean `sft`?"),
    (["show", "sft@v9"], "no artifact `sft@v9`; `sft` has {sft}"),
    (["show", "sft:best"], "no tag `sft:best`; `sft` has no tags. Set it with `trueup tag sft best`"),
    (["ls", "nope"], f"{{store}}: no artifact `nope`; {STORED}"),
    (["show", "sft", "--store", "empty"], "{tmp}/empty: no artifact `sft`; nothing is stored here yet. "
     "Run a recipe or pull first"),
    (["ls", "--store", "s3://bucket/x"], "store `s3://bucket/x` is a URL; expected a local folder. "
     "Work in a local store and move artifacts with `trueup push` and `trueup pull`"),
    (["lineage", "../sft"], "ref `../sft`; expected `name`, `name@v3`, `name@9f31c0` (four or more hex digits of the "
     "fingerprint) or `name:tag`. A name is letters, digits, `_`, `.` and `-`, beginning with a letter or digit"),
    (["tag", "sft"], "no tag given; expected trueup tag sft TAG. `trueup tag` lists tags"),
    (["tag", "--remove", "sft:x"], "no tag `sft:x`"),
    (["tag", "sft", "no/slash"], "tag `no/slash`; "
        "expected letters, digits, `_`, `.` and `-`, beginning with a letter or digit"),
    (["generate", "rm", "hello"], "`rm@v1` is a reward model; it must be a language model. Models here: dpo, sft"),
    (["generate", "./nowhere", "hi"], "no folder `./nowhere`; "
    "expected a ref, a local folder, or a hub id such as owner/name"),
    (["generate", "sft", ""], "the prompt is empty; expected some text. Give it as an argument or on standard input"),
    (["generate", "sft", "x", "-n", "0"], "--n is 0; it must be >= 1"),
    (["chat", "report"], "`report@v1` is a report; it must be a language model. Models here: dpo, sft"),
    (["compare", "dpo", "report"], "`report` is a report and `dpo` is not; expected two reports, or two models of one"),
    (["compare", "dpo", "sfx"], "{store}: no report with `sfx`; reports have dpo, sft. Did you mean `sft`?"),
    (["compare", "dpo", "sft", "--report", "rm"], "`rm@v1` is a reward; expected a report"),
    (["evaluate", "dpo", "--baseline", "sft"], "missing option '--data'; see `trueup evaluate --help`"),
    (["evaluate", "dpo", "--baseline", "sft", "--data", "one.yaml"], "stage evaluation: no judge; "
    "expected `gold` or `reward`. "
     "Name a reward model or a Python function"),
    (["new", "--kind", "dop"], "no starter `dop`; expected one of chain, dpo, sft. Did you mean `dpo`?"),
    (["new", "one.yaml"], "one.yaml exists; nothing there. Give --overwrite"),
    (["new", "recipe.txt"], "`recipe.txt` is not the name of a recipe; expected a name that ends in .yaml"),
    (["push", "nope://x"], "nope://x: Protocol not known: nope; expected a folder, or a URL such as s3://bucket/folder"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "line"), CASES, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_bad_input_is_told_in_one_line(
    trueup: Callable[..., Result], stocked: Store, tmp_path: Path, args: list[str], line: str
) -> None:
    (tmp_path / "one.yaml").write_text("stages: {}\n")
    (tmp_path / "broken.yaml").write_text("stages: {a: b\n")
    (tmp_path / "list.yaml").write_text("- a\n")
    known = ", ".join(f"v{a.manifest.version} ({a.manifest.short})" for a in stocked.artifacts("sft"))
    result = trueup(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == line.format(store=stocked.root, sft=known, tmp=tmp_path) + "\n"


def test_every_problem_of_a_recipe_has_its_line(trueup: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        "sed: 1\n"
        "stages:\n"
        "  tok: {kind: tokenizer, data: corpus}\n"
        "  base: {kind: pretrian, data: corpus}\n"
    )  # fmt: skip
    for verb in ("check", "plan", "run"):
        result = trueup(verb, "bad.yaml")
        assert result.exit_code == 2
        assert [line.partition(": ")[0] for line in result.stderr.splitlines()] == [
            "bad.yaml:1",
            "bad.yaml:3 stage tok",
            "bad.yaml:4 stage base",
        ]
    assert "Did you mean `seed`?" in result.stderr
    assert "Did you mean `pretrain`?" in result.stderr


def test_check_json_lists_problems(trueup: Callable[..., Result], tmp_path: Path) -> None:
    import json

    (tmp_path / "bad.yaml").write_text("stages:\n  tok: {kind: tokenizer, data: corpus}\n")
    result = trueup("check", "bad.yaml", "--json")
    assert result.exit_code == 2
    told = json.loads(result.stdout)
    assert told["ok"] is False
    assert [(p["where"], p["stage"]) for p in told["problems"]] == [("bad.yaml:2", "tok")]
    assert set(told["problems"][0]) == {"found", "expected", "remedy", "where", "stage", "text"}
