"""Verbs on recipes: what is planned, checked, written; and a run whose stages are all in the store."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from pipeline.recipe import json_schema

Trueup = Callable[..., Result]
STAGES = ["tokenizer", "base", "sft", "rm", "dpo", "report"]


@pytest.fixture
def finished(trueup: Trueup, chain: Any, tmp_path: Path) -> Path:
    """A copy of the finished tiny chain, its store beside it; returns its recipe."""
    shutil.copytree(chain.recipe.parent, tmp_path / "world")
    shutil.copytree(chain.store.root, tmp_path / "store")
    return tmp_path / "world" / "tiny.yaml"


def test_plan_says_why_everything_would_run(trueup: Trueup, tiny_recipe: Path) -> None:
    lines = trueup("plan", tiny_recipe).stdout.splitlines()
    assert [line.split() for line in lines[1:7]] == [
        [name, kind, "pending", "never", "run"]
        for name, kind in zip(STAGES, ["tokenizer", "pretrain", "sft", "reward", "dpo", "evaluate"], strict=True)
    ]
    assert "6 stages: 6 pending" in lines


@pytest.mark.parametrize(
    ("word", "said"),
    [("zero=3", "ZeRO-3"), ("fsdp=true", "FSDP2"), ("tensor_parallel=2", "tensor parallel 2")],
)
def test_plan_says_how_processes_divide_a_model(trueup: Trueup, tiny_recipe: Path, word: str, said: str) -> None:
    spread = ("--set", "stages.base.compute.processes=2", "--set", f"stages.base.compute.{word}")
    lines = trueup("plan", tiny_recipe, "--until", "base", *spread).stdout.splitlines()
    assert any(line.startswith("about, for 2 × ") and f", {said}; libraries" in line for line in lines)


def test_plan_json(trueup: Trueup, tiny_recipe: Path, tmp_path: Path) -> None:
    told = json.loads(trueup("plan", tiny_recipe, "--json").stdout)
    assert told["store"] == str(tmp_path / "store")
    assert told["pending"] == STAGES
    base = told["stages"][1]
    assert set(base) == {
        "name", "kind", "status", "why", "fingerprint", "ref", "seed", "inputs", "data"
    }  # fmt: skip
    assert (base["seed"], base["ref"], base["data"]["data"]["rows"]) == (7, None, 240)
    assert base["inputs"]["tokenizer"][0]["fingerprint"] == told["stages"][0]["fingerprint"]


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        (["--until", "sft"], ["tokenizer", "base", "sft"]),
        (["--only", "tokenizer"], ["tokenizer"]),
        (["--until", "dpo", "--set", "stages.dpo.model=base"], ["tokenizer", "base", "dpo"]),
    ],
)
def test_plan_of_a_part(trueup: Trueup, tiny_recipe: Path, options: list[str], stages: list[str]) -> None:
    told = json.loads(trueup("plan", tiny_recipe, *options, "--json").stdout)
    assert [stage["name"] for stage in told["stages"]] == stages


def test_the_store_of_a_recipe_is_used_when_nothing_else_is_said(
    trueup: Trueup, tiny_recipe: Path, tmp_path: Path
) -> None:
    tiny_recipe.write_text(f"store: kept/here\n{tiny_recipe.read_text()}")
    assert json.loads(trueup("plan", tiny_recipe, "--json").stdout)["store"] == str(tmp_path / "kept/here")
    told = trueup("plan", tiny_recipe, "--json", "--store", "other")
    assert json.loads(told.stdout)["store"] == str(tmp_path / "other")
    told = trueup("plan", tiny_recipe, "--json", env={"TRUEUP_STORE": "third"})
    assert json.loads(told.stdout)["store"] == str(tmp_path / "third")


def test_a_change_shows_what_has_to_run_again(trueup: Trueup, finished: Path) -> None:
    rows = [line.split(None, 3) for line in trueup("plan", finished).stdout.splitlines()[1:7]]
    assert [row[2:] for row in rows] == [["cached", f"{name}@v1"] for name in STAGES]
    told = json.loads(trueup("plan", finished, "--set", "stages.dpo.train.beta=0.25", "--json").stdout)
    why = {stage["name"]: (stage["status"], stage["why"]) for stage in told["stages"]}
    assert why["rm"] == ("cached", [])
    assert why["dpo"] == ("pending", ["train.beta 0.5 → 0.25"])
    assert why["report"] == ("pending", ["input models: dpo changed"])
    forced = json.loads(trueup("plan", finished, "--force", "dpo", "--json").stdout)
    assert forced["pending"] == ["dpo", "report"]


def test_a_run_with_nothing_to_do_ends_in_the_table_the_report_and_the_next_commands(
    trueup: Trueup, finished: Path
) -> None:
    result = trueup("run", finished)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].endswith("nothing to run: every stage is in the store")
    start = next(i for i, line in enumerate(lines) if line.startswith("stage "))
    table = [line.split() for line in lines[start + 1 : start + 7]]
    assert [row[:4] for row in table][::5] == [
        ["tokenizer", "tokenizer@v1", "tokenizer", "cached"],
        ["report", "report@v1", "evaluate", "cached"],
    ]
    assert any(line.startswith("0 made, 6 from the store, in ") for line in lines)
    # What must be known first, what it comes to, then the table.
    told = lines[lines.index("report@v1") + 1 :]
    assert told[0].startswith("warning: 18 of 24 prompts of asks are ones that sft learnt from (its source demos)")
    header = next(i for i, line in enumerate(told) if line.startswith("model "))
    assert "win rate vs sft" in told[header]
    assert [line.split()[0] for line in told[1:3]] == ["base", "dpo"]
    assert all(" is " in line or " cannot be told from " in line for line in told[1:3])
    rows = [line.split("  ")[0] for line in told[header + 1 :][:4]]
    assert rows[:3] == ["base", "sft", "dpo"] and "greedy" not in "".join(rows)
    assert "on the page also: sft (greedy)" in told
    assert lines[lines.index("next:") + 1 :] == [
        "  trueup chat dpo",
        "  trueup show report",
        "  trueup lineage dpo",
        f"  trueup run {finished} --set stages.dpo.train.beta=0.25",
    ]


def test_next_commands_name_a_store_they_would_not_find(trueup: Trueup, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "store").rename(tmp_path / "other")
    assert "  trueup chat dpo --store other\n" in trueup("run", finished, "--store", "other").stdout


def test_run_json_is_all_there_is_on_standard_output(trueup: Trueup, finished: Path) -> None:
    told = json.loads(trueup("run", finished, "--json").stdout)
    assert [(stage["name"], stage["status"], stage["ref"]) for stage in told["stages"]] == [
        (name, "cached", f"{name}@v1") for name in STAGES
    ]
    assert told["reports"]["report"]["baseline"] == "sft"
    assert set(told) == {"store", "run_dir", "seconds", "stages", "reports"}


def test_a_dry_run_writes_nothing_into_the_store(trueup: Trueup, tiny_recipe: Path, tmp_path: Path) -> None:
    assert trueup("run", tiny_recipe, "--dry-run").stdout == trueup("plan", tiny_recipe).stdout
    assert not list((tmp_path / "store").glob("[!.]*"))
    assert not (tmp_path / "store" / ".runs").exists()


def test_check_counts_what_it_read(trueup: Trueup, tiny_recipe: Path) -> None:
    # 240 texts, 240 demonstrations, 160 + 60 pairs, 24 prompts.
    told = trueup("check", tiny_recipe)
    table, _, sums = told.stdout.partition("\n\n")
    assert [re.split(" {2,}", line) for line in table.splitlines()] == [
        ["data", "stages", "rows are", "to learn from", "held out", "bad, left out"],
        ["corpus", "tokenizer, base", "text", "240", "0", "0"],
        ["demos", "sft", "messages", "211", "29", "0"],
        ["pairs", "rm, dpo", "preference", "144", "16", "0"],
        ["pairs_test", "rm", "preference", "60", "0", "0"],
        ["asks", "report", "prompt", "24", "0", "0"],
    ]
    *told_as, _, last = sums.splitlines()
    assert told_as == [  # nobody wrote `format:`, so it is said what was found, and why
        "data corpus is read as text: 240 of 240 rows have `text`",
        "data demos is read as messages: 240 of 240 rows have `messages`",
        "data pairs is read as preference: 160 of 160 rows have `chosen` and `rejected`",
        "data pairs_test is read as preference: 60 of 60 rows have `chosen` and `rejected`",
        "data asks is read as prompt: 24 of 24 rows have `prompt`",
    ]
    notes = sums.splitlines()[len(told_as) : -1]
    assert last == f"{tiny_recipe}: 6 stages, 724 rows to use in 5 data sources: no problems"
    # Its prompts are made as its demonstrations are, from twenty things.
    assert [line[:65] for line in notes] == ["note: stage report: 18 of 24 prompts of asks are ones that sft le"]
    data = json.loads(trueup("check", tiny_recipe, "--json").stdout)
    assert (data["ok"], data["problems"], data["stages"], data["tokens"]) == (True, [], 6, [])
    assert data["notes"] == [line.removeprefix("note: ") for line in notes]
    # A source that two stages read counts once in the sum, and stands under each of them here.
    assert [(each["source"], each["stage"], each["kept"]) for each in data["sources"]] == [
        ("corpus", "tokenizer", 240),
        ("corpus", "base", 240),
        ("demos", "sft", 240),
        ("pairs", "rm", 160),
        ("pairs_test", "rm", 60),
        ("pairs", "dpo", 160),
        ("asks", "report", 24),
    ]


@pytest.mark.parametrize("verb", ["check", "run"])
def test_a_bad_row_is_found_before_anything_runs(trueup: Trueup, tiny_recipe: Path, verb: str, tmp_path: Path) -> None:
    demos = tiny_recipe.parent / "demos.jsonl"
    demos.write_text(demos.read_text() + '{"messages": [{"role": "user"}]}\n')
    result = trueup(verb, tiny_recipe)
    assert result.exit_code == 2
    assert "demos.jsonl:241" in result.stderr
    assert not (tmp_path / "store" / ".runs").exists()


RATED = ["true", "false", "0", "1"]


@pytest.fixture
def rated(tiny_recipe: Path) -> Callable[..., Path]:
    """A recipe whose `kto` learns from rows with these labels, written as JSON; the last rows are given whole."""

    def write(*labels: str, rows: tuple[str, ...] = ()) -> Path:
        text = tiny_recipe.read_text()
        text = text.replace("\nstages:\n", "\n  rated: {path: rated.jsonl}\nstages:\n")
        text = text.replace("\n  report:\n", "\n  kto: {kind: kto, data: rated, model: sft}\n  report:\n")
        tiny_recipe.write_text(text)
        lines = [f'{{"prompt": "{i}", "completion": "yes .", "label": {label}}}' for i, label in enumerate(labels)]
        (tiny_recipe.parent / "rated.jsonl").write_text("".join(f"{line}\n" for line in (*lines, *rows)))
        return tiny_recipe

    return write


def test_labelled_rows_are_checked_for_kto(trueup: Trueup, rated: Callable[..., Path]) -> None:
    recipe = rated(*RATED, *RATED)
    told = trueup("check", recipe, "--set", "stages.kto.train.batch_size=8")
    assert told.exit_code == 0, told.stderr
    assert told.stdout.splitlines()[-1] == f"{recipe}: 7 stages, 732 rows to use in 6 data sources: no problems"


def test_bad_labelled_rows_are_found_before_anything_runs(trueup: Trueup, rated: Callable[..., Path]) -> None:
    bad = ('{"prompt": "a", "completion": "b"}', '{"prompt": "a", "completion": "", "label": 1}')
    result = trueup("check", rated(*RATED, '"maybe"', rows=bad))
    assert result.exit_code == 2
    row_problems = [line[line.index("rated.jsonl:") :] for line in result.stderr.splitlines() if "rated.jsonl:" in line]
    assert row_problems == [
        "rated.jsonl:5: row `label` is 'maybe'; expected true or false (or 1 or 0)",
        "rated.jsonl:6: row `label` is missing; expected true or false",
        "rated.jsonl:7: row `completion` is empty; expected text",
    ]
    assert "data rated: 3 of 7 rows are bad. Mend the data, or set `data.rated.on_bad_row: skip`" in result.stderr


@pytest.mark.parametrize(
    ("labels", "rows", "expected"),
    [
        (["1", "true"], (), "tiny.yaml:9: data rated: the label of all 2 rows to learn from is true"),
        ([], ('{"text": "a"}',), "rows are of format text (1 of"),
    ],
)
def test_rows_kto_cannot_learn_from_are_one_line(
    trueup: Trueup, rated: Callable[..., Path], labels: list[str], rows: tuple[str, ...], expected: str
) -> None:
    result = trueup("check", rated(*labels, rows=rows))
    assert result.exit_code == 2
    assert [expected in line for line in result.stderr.splitlines()].count(True) == 1


def test_cancel_says_that_a_local_recipe_has_no_jobs(trueup: Trueup, tiny_recipe: Path) -> None:
    result = trueup("cancel", tiny_recipe)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"no stage of {tiny_recipe} has a Slurm job. Ctrl-C stops a local run; "
        "give the same --set and --profile as the run had\n"
    )


def test_a_published_model_is_sized_without_a_connection(
    trueup: Trueup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "demos.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 20)
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        "data: {demos: {path: demos.jsonl}}\n"
        "stages:\n"
        "  sft: {kind: sft, data: demos, model: Qwen/Qwen2.5-0.5B, adapter: {r: 16}}\n"
    )
    told = trueup("plan", recipe)
    assert told.exit_code == 0, told.stderr
    assert ["sft", "494M"] in [line.split()[:2] for line in told.stdout.splitlines()]
    note = "Qwen/Qwen2.5-0.5B is sized from the configuration that trueup ships, not from its files"
    assert f"note: {note}" in told.stdout
    data = json.loads(trueup("plan", recipe, "--json").stdout)
    assert (data["needs"][0]["parameters"], data["needs_notes"]) == (494_032_768, [note])


def test_schema_is_that_of_the_registered_kinds(trueup: Trueup, tmp_path: Path) -> None:
    assert json.loads(trueup("schema").stdout) == json_schema()
    told = trueup("schema", "--out", "recipe.json").stdout
    assert told.splitlines()[1] == "  # yaml-language-server: $schema=recipe.json"
    assert json.loads((tmp_path / "recipe.json").read_text()) == json_schema()


ROWS = {
    "corpus": [{"text": f"text {i}"} for i in range(200)],
    "demonstrations": [{"prompt": f"question {i}", "completion": "answer"} for i in range(40)],
    "preferences": [{"prompt": f"question {i}", "chosen": "good", "rejected": "bad"} for i in range(40)],
    "prompts": [{"prompt": f"question {i}"} for i in range(10)],
}


@pytest.mark.parametrize(
    ("kind", "stages"),
    [
        ("sft", ["sft"]),
        ("dpo", ["sft", "rm", "dpo", "report"]),
        ("chain", ["tokenizer", "base", "sft", "rm", "dpo", "report"]),
    ],
)
def test_every_starter_is_sound(
    trueup: Trueup, tmp_path: Path, write_jsonl: Callable[..., Path], kind: str, stages: list[str]
) -> None:
    told = trueup("new", "mine.yaml", "--kind", kind)
    assert told.stdout.splitlines() == [
        "wrote mine.yaml",
        "",
        "next:",
        "  put your rows where `data:` says, or change the paths",
        "  trueup check mine.yaml",
        "  trueup run mine.yaml",
    ]
    assert "trueup run   mine.yaml" in (tmp_path / "mine.yaml").read_text()
    missing = trueup("check", "mine.yaml")
    assert missing.exit_code == 2
    assert all("data/" in line and "does not exist" in line for line in missing.stderr.splitlines())
    (tmp_path / "data").mkdir()
    for name, rows in ROWS.items():
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", rows)
    checked = trueup("check", "mine.yaml", "--json")
    assert checked.exit_code == 0, checked.output
    planned = json.loads(trueup("plan", "mine.yaml", "--json").stdout)
    assert [stage["name"] for stage in planned["stages"]] == stages


def test_the_default_starter_is_sft_in_recipe_yaml(trueup: Trueup, tmp_path: Path) -> None:
    assert json.loads(trueup("new", "--json").stdout) == {"files": ["recipe.yaml"], "recipe": "recipe.yaml"}
    (tmp_path / "recipe.yaml").write_text("mine\n")
    assert trueup("new").exit_code == 2
    assert (tmp_path / "recipe.yaml").read_text() == "mine\n"
    assert trueup("new", "--overwrite").exit_code == 0
    assert "kind: sft" in (tmp_path / "recipe.yaml").read_text()


def test_an_example_is_copied_with_its_data_and_can_be_planned(trueup: Trueup, tmp_path: Path) -> None:
    told = trueup("new", "--example", "quickstart", "mine")
    assert told.exit_code == 0, told.output
    assert told.stdout.splitlines()[-3:] == [
        "  cd mine",
        "  trueup plan recipes/quickstart.yaml",
        "  trueup run recipes/quickstart.yaml",
    ]
    root = Path(__file__).resolve().parents[2]
    shipped = {p.relative_to(root) for p in (root / "data" / "quickstart").rglob("*") if p.is_file()}
    shipped = {path for path in shipped if "__pycache__" not in path.parts} | {Path("recipes/quickstart.yaml")}
    copied = {p.relative_to(tmp_path / "mine") for p in (tmp_path / "mine").rglob("*") if p.is_file()}
    assert copied == shipped
    assert all((tmp_path / "mine" / path).read_bytes() == (root / path).read_bytes() for path in copied)
    planned = trueup("plan", "mine/recipes/quickstart.yaml", "--json")
    assert planned.exit_code == 0, planned.output
    assert json.loads(planned.stdout)["pending"][-1] == "report"
    again = trueup("new", "--example", "quickstart", "mine")
    assert again.exit_code == 2
    assert "exists" in again.stderr


@pytest.mark.parametrize("name", ["feedback", "online-dpo", "ppo-settings", "reward-hacking", "rlaif"])
def test_an_example_that_extends_another_can_be_planned(name: str, trueup: Trueup) -> None:
    assert trueup("new", "--example", name, "mine").exit_code == 0
    planned = trueup("plan", f"mine/recipes/{name}.yaml", "--json")
    assert planned.exit_code == 0, planned.output


def test_an_example_keeps_what_is_there_of_what_it_extends(trueup: Trueup, tmp_path: Path) -> None:
    told = trueup("new", "--example", "reward-hacking", "mine")
    assert told.exit_code == 0, told.output
    again = trueup("new", "--example", "rlaif", "mine")  # the quickstart is there, as shipped
    assert again.exit_code == 0, again.output
    (tmp_path / "mine" / "recipes" / "quickstart.yaml").write_text("name: mine\n")
    kept = trueup("new", "--example", "online-dpo", "mine")
    assert kept.exit_code == 2 and "quickstart.yaml exists" in kept.stderr
    assert (tmp_path / "mine" / "recipes" / "quickstart.yaml").read_text() == "name: mine\n"


def test_examples_are_read_from_an_installed_package(
    trueup: Trueup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipeline.cli.scaffold

    package = tmp_path / "site-packages" / "pipeline"
    (package / "_shipped" / "recipes").mkdir(parents=True)
    (package / "_shipped" / "data" / "small").mkdir(parents=True)
    (package / "_shipped" / "recipes" / "small.yaml").write_text("stages: {}\n")
    (package / "_shipped" / "data" / "small" / "rows.jsonl").write_text("{}\n")
    monkeypatch.setattr(pipeline.cli.scaffold, "_PACKAGE", package)
    told = trueup("new", "--example", "small")
    assert told.exit_code == 0, told.output
    assert (tmp_path / "small" / "recipes" / "small.yaml").is_file()
    assert (tmp_path / "small" / "data" / "small" / "rows.jsonl").is_file()
    assert (
        trueup("new", "--example", "smal").stderr == "no example `smal`; expected one of small. Did you mean `small`?\n"
    )


def test_a_format_that_the_recipe_names_is_not_told_again(trueup: Trueup, tiny_recipe: Path) -> None:
    formats = [f"data.{name}.format={kind}" for name, kind in (("corpus", "text"), ("demos", "messages"))]
    told = trueup("check", tiny_recipe, *(word for each in formats for word in ("--set", each))).stdout
    assert "is read as preference" in told
    assert "corpus is read as" not in told
    assert "demos is read as" not in told
