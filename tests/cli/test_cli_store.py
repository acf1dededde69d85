"""Verbs on the store, on real artifacts."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from pipeline.artifacts import Artifact, Store
from pipeline.artifacts.refs import tags
from pipeline.cli.verbs.store import _ask

Trueup = Callable[..., Result]


def _lines(result: Result) -> list[list[str]]:
    return [line.split() for line in result.stdout.splitlines()]


def test_ls_lists_every_version_by_name(trueup: Trueup, stocked: Store) -> None:
    result = trueup("ls")
    assert result.exit_code == 0
    header, *rows = _lines(result)
    assert header[:3] == ["artifact", "kind", "fingerprint"]
    assert [row[0] for row in rows] == ["dpo@v1", "report@v1", "rm@v1", "sft@v1", "sft@v2"]
    assert result.stdout.splitlines()[-1].endswith("loss 1.25")


def test_ls_of_one_name(trueup: Trueup, stocked: Store) -> None:
    assert [row["ref"] for row in json.loads(trueup("ls", "sft", "--json").stdout)] == ["sft@v1", "sft@v2"]


def test_ls_json_has_stable_keys(trueup: Trueup, stocked: Store) -> None:
    trueup("tag", "sft@v1", "champion")
    row = next(row for row in json.loads(trueup("ls", "--json").stdout) if row["ref"] == "sft@v1")
    assert set(row) == {
        "ref", "name", "version", "kind", "makes", "fingerprint", "created", "bytes", "files", "seconds", "tokens",
        "metrics", "tags", "summary", "path",
    }  # fmt: skip
    assert row["tags"] == ["champion"]
    assert row["version"] == 1
    assert row["metrics"] == {"loss": 1.5}


def test_ls_of_an_empty_store(trueup: Trueup, tmp_path: Path) -> None:
    result = trueup("ls")
    assert result.stdout == f"no artifacts in {tmp_path / 'store'}\n"
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("how", ["option", "variable"])
def test_the_store_is_the_option_or_the_variable(trueup: Trueup, stocked: Store, tmp_path: Path, how: str) -> None:
    other = tmp_path / "elsewhere"
    stocked.root.rename(other)
    given = ["--store", str(other)] if how == "option" else []
    result = trueup("ls", "rm", "--json", *given, env={"TRUEUP_STORE": str(other)} if how == "variable" else None)
    assert [row["ref"] for row in json.loads(result.stdout)] == ["rm@v1"]


def test_the_option_wins_over_the_variable(trueup: Trueup, stocked: Store, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    result = trueup("ls", "--store", "none", env={"TRUEUP_STORE": str(stocked.root)})
    assert result.stdout == f"no artifacts in {tmp_path / 'none'}\n"


def test_show_tells_origin_data_settings_and_files(trueup: Trueup, stocked: Store) -> None:
    text = trueup("show", "sft").stdout
    for line in (
        "artifact     sft@v2",
        "  data  demos: 1,200 rows, 3 left out, dddddddddddd (demos.jsonl)",
        "  train.learning_rate  0.002",
        "  loss  1.25",
    ):
        assert line in text.splitlines()
    assert "  weights.txt" in text
    assert "  model  sft@v2 (sft)" in trueup("show", "dpo").stdout.splitlines()


def test_show_of_a_report_ends_in_its_tables(trueup: Trueup, stocked: Store) -> None:
    lines = trueup("show", "report").stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("model "))
    assert "win rate vs sft" in lines[start]
    assert lines[start + 1].startswith("sft")
    assert "baseline" in lines[start + 1]
    assert "62.5 % [25.0, 100.0]" in lines[start + 2]
    page = stocked.artifacts("report")[0].path.relative_to(Path.cwd()) / "report.md"
    assert lines[-1] == f"report: {page}"
    assert [line.split() for line in lines[lines.index("correct answers by task") :][1:3]] == [
        ["task", "prompts", "sft", "dpo"],
        ["a", "2", "50", "%", "100", "%", "(+50)"],
    ]
    assert "files" not in lines
    assert "files" in trueup("show", "report", "--all").stdout.splitlines()
    assert "  models  sft@v2 (sft), dpo@v1 (dpo)" in lines


def test_show_path_and_json(trueup: Trueup, stocked: Store) -> None:
    artifact = stocked.artifacts("dpo")[0]
    assert trueup("show", "dpo", "--path").stdout == f"{artifact.path}\n"
    shown = json.loads(trueup("show", "dpo", "--json").stdout)
    assert shown["manifest"] == artifact.manifest.model_dump(mode="json")


def test_lineage_goes_up_to_the_data_and_down_to_the_report(trueup: Trueup, stocked: Store) -> None:
    up = trueup("lineage", "dpo").stdout.splitlines()
    assert up[0].startswith("dpo@v1  dpo")
    assert "model: sft@v2" in up[1]
    assert "data: demos, 1,200 rows" in up[2]
    down = json.loads(trueup("lineage", "sft@v2", "--down", "--json").stdout)
    assert [(child["field"], child["ref"]) for child in down["children"]] == [
        ("model", "dpo@v1"),
        ("models", "report@v1"),
        ("model", "rm@v1"),
    ]
    assert "demos" not in trueup("lineage", "sft@v2", "--down").stdout


@pytest.mark.parametrize(
    ("limit", "rejected", "used", "shown"),
    [
        (None, 3, 1200, "1,200 rows"),
        (100, 0, 100, "100 of 1,200 rows"),
        (5000, 0, 1200, "1,200 rows"),
        (1199, 3, 1197, "1,197 of 1,200 rows"),  # the bad rows are none of those used
    ],
)
def test_lineage_and_show_say_how_many_rows_of_a_source_were_used(
    limit: int | None, rejected: int, used: int, shown: str, trueup: Trueup, store_with: Callable[..., Store]
) -> None:
    store_with({"demos": {"path": "demos.jsonl", **({"limit": limit} if limit else {})}}, rejected)
    assert f"data: demos, {shown} d" in trueup("lineage", "few").stdout
    assert f"demos: {shown}, {rejected} left out" in trueup("show", "few").stdout
    record = json.loads(trueup("lineage", "few", "--json").stdout)["data"]["data"]
    assert (record["rows"], record["used"]) == (1200, used)


def test_diff_shows_settings_and_by_how_much_metrics_changed(trueup: Trueup, stocked: Store) -> None:
    result = trueup("diff", "sft@v1", "sft@v2")
    rows = _lines(result)
    assert rows[0] == ["section", "key", "sft@v1", "sft@v2", "change"]
    assert ["config", "train.learning_rate", "0.001", "0.002"] in rows
    assert ["metrics", "loss", "1.5", "1.25", "-0.25"] in rows
    assert "payload: different bytes" in result.stdout.splitlines()
    assert "weights.txt" not in result.stdout
    assert "weights.txt" in trueup("diff", "sft@v1", "sft@v2", "--all").stdout


def test_diff_of_an_artifact_with_itself(trueup: Trueup, stocked: Store) -> None:
    lines = trueup("diff", "sft", "sft@v2").stdout.splitlines()
    assert lines == [
        "sft@v2 and sft@v2 agree in configuration, inputs, data and metrics",
        "",
        "payload: the same bytes",
    ]


def test_diff_json(trueup: Trueup, stocked: Store) -> None:
    difference = json.loads(trueup("diff", "sft@v1", "sft@v2", "--json").stdout)
    assert (difference["before"], difference["after"], difference["same_payload"]) == ("sft@v1", "sft@v2", False)
    change = {"section": "metrics", "key": "loss", "before": 1.5, "after": 1.25}
    assert change in difference["changes"]


def test_verify_finds_a_changed_byte(trueup: Trueup, stocked: Store) -> None:
    assert trueup("verify").exit_code == 0
    artifact = stocked.artifacts("dpo")[0]
    (artifact.path / "weights.txt").write_text("dpX")
    result = trueup("verify")
    assert result.exit_code == 1
    assert [row[:2] for row in _lines(result)][1:3] == [["dpo@v1", "damaged"], ["report@v1", "ok"]]
    assert "`weights.txt` has sha256" in result.stderr
    assert trueup("verify", "sft@v1", "rm").exit_code == 0
    ok_by_ref = {row["ref"]: row["ok"] for row in json.loads(trueup("verify", "--json").stdout)}
    assert ok_by_ref == {"dpo@v1": False, "report@v1": True, "rm@v1": True, "sft@v1": True, "sft@v2": True}


def test_tags_are_set_listed_and_removed(trueup: Trueup, stocked: Store) -> None:
    assert trueup("tag").stdout == f"no tags in {stocked.root}\n"
    assert trueup("tag", "sft@v1", "champion").stdout == "sft:champion is sft@v1\n"
    assert _lines(trueup("tag"))[1] == ["sft:champion", "sft@v1"]
    assert json.loads(trueup("tag", "--json").stdout) == [{"tag": "sft:champion", "ref": "sft@v1"}]
    assert trueup("show", "sft:champion", "--path").stdout.strip() == str(stocked.artifacts("sft")[0].path)
    assert trueup("tag", "--remove", "sft:champion").stdout == "removed sft:champion\n"
    assert tags(stocked) == {}


def test_a_tag_can_be_removed_as_it_was_set(trueup: Trueup, stocked: Store) -> None:
    trueup("tag", "sft@v1", "champion")
    assert trueup("tag", "sft@v1", "champion", "--remove").stdout == "removed sft:champion\n"


def test_gc_shows_and_asks_before_it_removes(trueup: Trueup, stocked: Store) -> None:
    # sft@v1 is not the newest of its name and nothing was made from it: the only one that may go.
    assert json.loads(trueup("gc", "--dry-run", "--json").stdout)["removed"] == ["sft@v1"]
    asked = trueup("gc")
    assert asked.exit_code == 2
    assert asked.stderr == "nothing was removed: there is no terminal to ask at. Give --yes to go on\n"
    assert len(stocked.artifacts("sft")) == 2
    done = trueup("gc", "--yes")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1].startswith("removed, ")
    assert [artifact.ref for artifact in stocked.artifacts("sft")] == ["sft@v2"]
    assert trueup("gc").stdout == "nothing to remove; 4 artifacts stay\n"


def test_gc_keeps_what_has_a_tag(trueup: Trueup, stocked: Store) -> None:
    trueup("tag", "sft@v1", "champion")
    assert trueup("gc", "--yes").stdout == "nothing to remove; 5 artifacts stay\n"


def test_push_and_pull_move_an_artifact_with_its_ancestors(trueup: Trueup, stocked: Store, tmp_path: Path) -> None:
    pushed = json.loads(trueup("push", tmp_path / "remote", "dpo", "--json").stdout)
    assert sorted(pushed["moved"]) == ["dpo@v1", "sft@v2"]
    pulled = trueup("pull", tmp_path / "remote", "--store", "other")
    assert pulled.stdout.splitlines()[-1].startswith(f"2 artifacts from {tmp_path / 'remote'}: ")
    assert [artifact.ref for artifact in Store(tmp_path / "other").artifacts()] == ["dpo@v1", "sft@v2"]
    again = trueup("pull", tmp_path / "remote", "dpo", "--no-ancestors", "--store", "other")
    assert again.stdout.splitlines()[0] == "dpo@v1 was there already"


def test_compare_pairs_the_answers_of_two_models(trueup: Trueup, stocked: Store) -> None:
    # dpo against sft, by score: 2>1 won, 1=1 tied, 0<1 lost, 1>0 won: (2 + ½) / 4. Means 4/4 and 3/4.
    # Correct: dpo 1,1,0,1 and sft 1,0,1,1: 3/4 each; task a 2/2 against 1/2, task b 1/2 against 2/2.
    comparison = json.loads(trueup("compare", "dpo", "sft", "--json").stdout)[0]
    assert (comparison["source"], comparison["prompts"], comparison["judge"]) == ("report@v1", 4, "gold")
    assert comparison["win_rate"]["value"] == 0.625
    assert (comparison["wins"], comparison["ties"], comparison["losses"]) == (2, 1, 1)
    measures = {
        each["name"]: (each["first"], each["second"], each["difference"]["value"]) for each in comparison["measures"]
    }
    assert measures == {
        "score": (1.0, 0.75, 0.25),
        "correct": (0.75, 0.75, 0.0),
        "correct: a": (1.0, 0.5, 0.5),
        "correct: b": (0.5, 1.0, -0.5),
    }


def test_compare_prints_the_difference_with_its_sign(trueup: Trueup, stocked: Store) -> None:
    lines = trueup("compare", "dpo@v1", "sft", "--report", "report").stdout.splitlines()
    assert lines[0] == "dpo@v1 against sft: 4 prompts of report@v1, judged by gold"
    # Four prompts decide nothing, and no figure is said to.
    assert lines[1].startswith("dpo@v1 cannot be told from sft beyond noise (correct 0.0 points [")
    assert lines[2].startswith("win rate 62.5 % [")
    assert lines[2].endswith("]: 2 won, 1 tied, 1 lost, p = 1")
    row = next(line for line in lines if line.startswith("mean gold score"))
    assert row.split()[3:6] == ["1.00", "0.75", "+0.25"]
    assert "*" not in row


def _limited(stocked: Store, commit: Callable[..., Artifact], name: str) -> Artifact:
    """Commit a newer report on the last three of the four prompts."""
    old = stocked.artifacts("report")[0].path
    report = json.loads((old / "report.json").read_text())
    report |= {"schema": 2, "prompts": 3, "available": 4, "sampled_by": "task", "seed": 7}
    rows = (old / "samples.jsonl").read_text().splitlines(keepends=True)
    files = {"report.json": json.dumps(report), "samples.jsonl": "".join(rows[1:])}
    return commit(stocked, name, "limited", files, kind="evaluate", makes="report")


def test_compare_does_not_take_a_sample_for_the_whole(
    trueup: Trueup, stocked: Store, commit: Callable[..., Artifact]
) -> None:
    _limited(stocked, commit, "report")
    assert "4 prompts of report@v1" in trueup("compare", "dpo", "sft").stdout.splitlines()[0]
    lines = trueup("compare", "dpo", "sft").stdout.splitlines()
    assert lines[-1] == "note: newer, but on a sample of the prompts: report@v2; name one with --report to use it"
    lines = trueup("compare", "dpo", "sft", "--report", "report").stdout.splitlines()
    assert "3 prompts of report@v2" in lines[0]
    whole = "note: report@v2 is on 3 of 4 prompts, a sample stratified by task (seed 7), not on all"
    assert lines[-1] == whole
    both = trueup("compare", "report@v2", "report@v1").stdout.splitlines()
    assert both[-2:] == [whole, "note: 1 prompt is in report@v1 only, and left out"]


def test_a_limited_report_of_schema_1_is_known_by_its_configuration(
    trueup: Trueup, stocked: Store, commit: Callable[..., Artifact]
) -> None:
    old = stocked.artifacts("report")[0].path
    report = {**json.loads((old / "report.json").read_text()), "prompts": 4}
    files = {"report.json": json.dumps(report), "samples.jsonl": (old / "samples.jsonl").read_text()}
    commit(stocked, "part", "one", files, kind="evaluate", makes="report", config={"config": {"limit": 4}})
    assert "4 prompts of report@v1" in trueup("compare", "dpo", "sft").stdout.splitlines()[0]
    lines = trueup("compare", "dpo", "sft", "--report", "part").stdout.splitlines()
    assert lines[-1] == "note: part@v1 is on the first 4 prompts of its data, not on all"


def test_where_there_is_only_a_sample_it_is_taken_and_named(
    trueup: Trueup, stocked: Store, commit: Callable[..., Artifact]
) -> None:
    sample = _limited(stocked, commit, "part")
    shutil.rmtree(stocked.artifacts("report")[0].path)
    lines = trueup("compare", "dpo", "sft").stdout.splitlines()
    assert f"3 prompts of {sample.ref}" in lines[0]
    assert lines[-1].startswith("note: part@v1 is on 3 of 4 prompts")


def test_compare_has_the_intervals_of_the_report(
    trueup: Trueup, stocked: Store, commit: Callable[..., Artifact]
) -> None:
    from pipeline.evaluation.stats.intervals import mean_interval

    limited = _limited(stocked, commit, "part")
    comparison = json.loads(trueup("compare", "dpo", "sft", "--report", limited.ref, "--json").stdout)[0]
    # One tie, one loss, one win of the last three prompts, with the report's seed.
    expected = mean_interval([0.5, 0.0, 1.0], seed=7, bounds=(0, 1))
    assert comparison["win_rate"] == expected.model_dump()


def test_compare_two_reports_pairs_shared_prompts(
    trueup: Trueup, stocked: Store, commit: Callable[..., Artifact]
) -> None:
    old = stocked.artifacts("report")[0].path
    rows = [json.loads(line) for line in (old / "samples.jsonl").read_text().splitlines()]
    # The second report asks three of the four prompts in another order, and sft scores one more on each.
    for row in rows:
        row["answers"]["sft"]["score"] += 1
    samples = "".join(f"{json.dumps(row)}\n" for row in (rows[2], rows[0], rows[1]))
    files = {"report.json": (old / "report.json").read_text(), "samples.jsonl": samples}
    commit(stocked, "report", "two", files, kind="evaluate", makes="report")
    comparisons = json.loads(trueup("compare", "report@v2", "report@v1", "--json").stdout)
    sft = next(each for each in comparisons if each["first"] == "sft in report@v2")
    assert (sft["prompts"], sft["wins"], sft["win_rate"]["value"]) == (3, 3, 1.0)
    assert next(m for m in sft["measures"] if m["name"] == "score")["difference"]["value"] == 1.0
    dpo = next(each for each in comparisons if each["first"] == "dpo in report@v2")
    assert dpo["win_rate"]["value"] == 0.5


def test_json_is_json_whatever_else_is_asked(trueup: Trueup, stocked: Store) -> None:
    artifact = stocked.artifacts("dpo")[0]
    assert json.loads(trueup("show", "dpo", "--path", "--json").stdout)["path"] == str(artifact.path)
    told = trueup("tag", "sft@v1", "champion", "--json").stdout
    assert json.loads(told) == {"tag": "sft:champion", "ref": "sft@v1"}
    assert json.loads(trueup("tag", "--remove", "sft:champion", "--json").stdout) == {
        "tag": "sft:champion",
        "ref": None,
    }


def test_a_question_is_asked_beside_what_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Typed(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Typed("y\n"))
    _ask("remove 3 B?", "nothing was removed")
    shown = capsys.readouterr()
    assert shown.out.strip() == ""  # it may be JSON, for a program
    assert "remove 3 B? [y/N]" in shown.err


@pytest.mark.parametrize("ref", ["sft@v1", "sft:champion"])
def test_ls_of_a_ref_says_what_shows_it(trueup: Trueup, stocked: Store, ref: str) -> None:
    told = trueup("ls", ref)
    assert told.exit_code == 2
    assert told.stderr == (
        f"`{ref}` is a ref; expected a name. `trueup ls sft` lists its versions, `trueup show {ref}` shows this one\n"
    )
    assert trueup("ls", "sft").exit_code == 0
