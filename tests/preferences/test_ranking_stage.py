"""Sample, rank, train: people rank a checkpoint's own answers over HTTP, and the next stage learns from the pairs."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
name: ranked
seed: 7
data:
  asks: {{path: {folder}/asks.jsonl}}
  groups: {{artifact: candidates, file: groups.jsonl}}
  preferred: {{artifact: labels, file: preferences.jsonl}}
stages:
  candidates: {{kind: sample, data: asks, models: [{sft}], n: 5, max_new_tokens: 12, pair_choice: rank}}
  labels: {{kind: labels, data: groups, labels_per_item: 2}}
  tuned: {{kind: dpo, data: preferred, model: {sft}, train: {{max_steps: 2, batch_size: 4}}}}
compute: {{threads: 1}}
"""


def _rank(app: Any, who: str, *, shorter_first: bool = True) -> int:
    """Rank every group by the length of its answers, and return their number."""
    items, count = app.ask("next", who)["items"], 0
    while items:
        lengths = [len(answer[0]["content"]) for answer in items[0]["answers"]]
        tiers = [[i for i, own in enumerate(lengths) if own == one] for one in sorted(set(lengths))]
        ranking = tiers if shorter_first else tiers[::-1]
        items = app.ask("rank", who, item=items[0]["item"], ranking=ranking, seconds=1.0)["items"]
        count += 1
    return count


@pytest.mark.slow
def test_ranked_answers_are_trained_on(
    tmp_path: Path, chain: Any, call: Any, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRUEUP_LEDGER", raising=False)
    recipe = tmp_path / "ranked.yaml"
    recipe.write_text(RECIPE.format(folder=chain.recipe.parent, sft=chain["sft"].path))
    waiting = call("run", recipe, "--store", "store", cwd=tmp_path)
    assert waiting.returncode == 3, waiting.stdout + waiting.stderr
    line = ["collect", str(recipe), "labels", "--annotators", "ada,grace", "--port", "0", "--store", "store"]
    app = serve(line, tmp_path)
    count = _rank(app, "ada")
    assert _rank(app, "grace") == count > 3
    app.process.send_signal(signal.SIGINT)
    app.process.wait(timeout=800)
    done = call("run", recipe, "--store", "store", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (artifact,) = (tmp_path / "store" / "labels").glob("*/preferences.jsonl")
    rows = [json.loads(text) for text in artifact.read_text().splitlines()]
    assert all(len(row["chosen"][0]["content"]) < len(row["rejected"][0]["content"]) for row in rows)
    assert all(1 <= row["margin"] <= 3 for row in rows)
    ranked = [json.loads(text) for text in (artifact.parent / "rankings.jsonl").read_text().splitlines()]
    assert len(ranked) == count
    untied = 0
    for one in ranked:
        lengths = [len(answer[0]["content"]) for answer in one["answers"]]
        assert one["rankings"]["ada"] == one["rankings"]["grace"] and one["propensity"]
        assert [lengths[tier[0]] for tier in one["rankings"]["ada"]] == sorted(set(lengths))
        untied += sum(a != b for a, b in combinations(lengths, 2))
    assert len(rows) == untied
    (manifest,) = (json.loads(file.read_text()) for file in (tmp_path / "store" / "tuned").glob("*/manifest.json"))
    assert manifest["rows"]["train"] == untied
    metrics = json.loads((artifact.parent / "manifest.json").read_text())["metrics"]
    assert metrics["kendall_tau_b"] == 1 and metrics["agreement"] == 1 and metrics["labels"] == 2 * count


TEXTS = ("a", "bb", "ccc", "dddd")


@pytest.fixture
def ranked(tmp_path: Path) -> Path:
    """A recipe with four prompts of four candidates, of which people rank three."""
    candidates = [{"text": text} for text in TEXTS]
    rows = [{"prompt": f"question {n}?", "candidates": candidates} for n in range(4)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "known.jsonl").write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n')
    recipe = tmp_path / "ranked.yaml"
    recipe.write_text(
        """
name: ranked
data:
  answers: {path: answers.jsonl}
  known: {path: known.jsonl}
stages:
  labels: {kind: labels, data: answers, pair_choice: rank, rank_size: 3, labels_per_item: 2}
"""
    )
    return recipe


@pytest.fixture
def app(ranked: Path, serve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The app of the four groups."""
    monkeypatch.delenv("TRUEUP_LEDGER", raising=False)
    line = ["collect", str(ranked), "labels", "--annotators", "ada,grace", "--lead", "lin", "--port", "0"]
    return serve([*line, "--store", "store"], tmp_path)


def test_every_word_of_labels_works_on_rankings(app: Any, ranked: Path, tmp_path: Path, call: Any) -> None:
    """Two people of opposite taste, so that nothing is decided, and a lead decides one group."""

    def labels(word: str, *more: str) -> Any:
        return call("labels", word, ranked, "labels", *more, "--store", "store", cwd=tmp_path)

    assert "nobody has labelled a group yet" in labels("stats").stdout
    assert "no group has two labels" in labels("agreement").stdout
    assert _rank(app, "ada") == 4 and _rank(app, "grace", shorter_first=False) == 4
    told = app.ask("lead/overview", "lin")
    assert told["kendall_tau_b"]["value"] == -1 and told["agreement"]["value"] == 0
    assert told["lists"]["disagreements"] == 4 and told["progress"]["pairs"] == 4
    code, text = app.post("lead/items", app.tokens["lin"], b'{"name": "disagreements"}')
    assert code == 200, text
    shown = json.loads(text)["items"][0]
    assert {"answers", "labels"} <= shown.keys() and "left" not in shown
    assert shown["labels"][0]["ranking"] == shown["labels"][1]["ranking"][::-1]
    app.ask("lead/adjudicate", "lin", 409, item=shown["item"], choice="left")
    app.ask("lead/adjudicate", "lin", 409, item=shown["item"], choice=None, ranking=[[0], [1]])
    order = sorted(range(3), key=lambda place: len(shown["answers"][place][0]["content"]))
    app.ask("lead/adjudicate", "lin", item=shown["item"], choice=None, ranking=[[order[0]], order[1:]])
    assert "8 of 8 labels of 4 groups" in labels("status").stdout
    agreed = labels("agreement").stdout
    assert "of 12 comparisons agree, on 4 groups, each two answers of a ranking" in agreed
    assert "Kendall's tau-b: -1.000" in agreed
    stats = labels("stats").stdout
    assert (
        "8 labels of 2 people" in stats and "chose first" in stats and "the tests take one such pair of each" in stats
    )
    as_json = json.loads(labels("stats", "--json").stdout)
    assert as_json["kendall_tau_b"]["n"] == 4 and as_json["people"]["ada"]["labels"] == 4
    done = call("run", ranked, "--store", "store", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 preferences from 8 rankings; no row of 9 split, 1 tie" in done.stdout + done.stderr
    for row_format, count in (("preference", 2), ("unpaired", 3), ("hh", 2), ("raw", 8), ("argilla", 4), ("csv", 8)):
        told = labels("export", "--format", row_format, "--out", f"{row_format}.out")
        assert told.returncode == 0 and f"{count} " in told.stderr.split(" as of ")[0], (row_format, told.stderr)
    (tmp_path / "raw.out").rename(tmp_path / "raw.jsonl")
    assert "0 labels imported; 8 labels that are there already" in labels("import", "raw.jsonl").stdout
    assert "each follows the one before it" in labels("verify").stdout
    other = ("--ledger", f"sqlite:///{tmp_path / 'other.db'}")
    assert "8 labels of 2 people imported" in labels("import", "raw.jsonl", *other).stdout
    assert "Kendall's tau-b: -1.000" in labels("agreement", *other).stdout
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "question 0?", "chosen": "a", "rejected": "bb"}\n')
    refused = labels("import", "pairs.jsonl", "--as", "them")
    assert refused.returncode == 2 and "people rank groups here, and the first row has the columns" in refused.stderr
    refused = labels("import", "pairs.jsonl", "--as", "them", "--format", "preference")
    assert refused.returncode == 2 and "--format preference of an import; expected one of raw" in refused.stderr
    assert "no group of this batch is abc" in labels("drop", "abc").stderr
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(answers.read_text().splitlines(keepends=True)[:-1]))
    for row_format in ("preference", "raw"):
        told = labels("export", "--format", row_format).stderr
        assert "2 answers to groups that the data do not have now are left out" in told


WRONG_RANKINGS: dict[str, Any] = {
    "a place twice": {"ranking": [[0], [0, 1]]},
    "a place too few": {"ranking": [[0], [1]]},
    "an empty tier": {"ranking": [[0], [], [1, 2]]},
    "a place too far": {"ranking": [[0], [1], [3]]},
    "a boolean": {"ranking": [[False], [True], [2]]},
    "text": {"ranking": [["0"], ["1"], ["2"]]},
    "too many": {"ranking": [[0]] * 7},
    "no list": {"ranking": "012"},
    "a choice": {"choice": "left"},
    "an edit": {"ranking": [[0], [1], [2]], "edit": "x"},
    "ratings": {"ranking": [[0], [1], [2]], "ratings": {"helpful": {"left": 1}}},
    "no seconds": {"ranking": [[0], [1], [2]], "seconds": -1.0},
    "a long comment": {"ranking": [[0], [1], [2]], "comment": "x" * 2001},
}


def test_what_is_no_ranking_is_refused_and_nothing_is_recorded(app: Any) -> None:
    shown = app.ask("next", "ada")["items"][0]
    assert app.ask("hello", "ada")["ranked"] is True
    for case, body in WRONG_RANKINGS.items():
        code, text = app.post("rank", app.tokens["ada"], json.dumps({"item": shown["item"], **body}).encode())
        assert code in (409, 422), (case, text)
        assert "Traceback" not in text and len(json.loads(text)["error"]) < 200, case
    code, _ = app.post("rank", app.tokens["ada"], b'{"ranking": "' + b"x" * 70_000 + b'"}')
    assert code == 413
    assert (
        app.post("label", app.tokens["ada"], json.dumps({"item": shown["item"], "choice": "left"}).encode())[0] == 404
    )
    assert app.post("rank", "nobody", b"{}")[0] == 401 and app.post("rank", app.tokens["lin"], b"{}")[0] == 403
    other = app.ask("next", "grace")["items"][0]["item"]
    ranking = [[0], [1], [2]]
    assert "was not handed to you" in app.ask("rank", "ada", 409, item=other, ranking=ranking)["error"]
    assert app.ask("next", "ada")["progress"]["own"] == 0
    app.ask("rank", "ada", item=shown["item"], ranking=ranking, request="r")
    assert app.ask("rank", "ada", item=shown["item"], ranking=ranking, request="r")["progress"]["own"] == 1
    flagged = app.ask("next", "ada")["items"][0]["item"]
    app.ask("flag", "ada", item=flagged, reason="rude", flag="harmful")
    assert app.ask("undo", "ada")["undone"] == flagged


def test_what_applies_to_pairs_is_refused_before_people_begin(ranked: Path, tmp_path: Path, call: Any) -> None:
    wrong = call("check", ranked, "--set", "stages.labels.gold=known", cwd=tmp_path)
    assert wrong.returncode == 2 and "gold applies to pairs, and people rank groups here" in wrong.stdout + wrong.stderr
    groups = [{"prompt": "q", "row": 0, "candidates": [{"text": text} for text in TEXTS], "propensity": 1.0}]
    (tmp_path / "answers.jsonl").write_text(json.dumps(groups[0]) + "\n")
    plain = ranked.read_text().replace("pair_choice: rank, rank_size: 3, ", "repeats: 0.1, ")
    ranked.write_text(plain)
    for verb in (("run", ranked), ("labels", "status", ranked, "labels")):
        told = call(*verb, "--store", "store", cwd=tmp_path)
        assert told.returncode == 2, told.stdout + told.stderr
        assert "repeats applies to pairs, and people rank groups here" in told.stderr


def test_no_app_opens_where_nothing_can_be_ranked(tmp_path: Path, call: Any) -> None:
    candidates = [{"text": "yes"}, {"text": "no"}]
    (tmp_path / "few.jsonl").write_text(json.dumps({"prompt": "Is it?", "row": 0, "candidates": candidates}) + "\n")
    recipe = tmp_path / "few.yaml"
    recipe.write_text(
        "data: {few: {path: few.jsonl}}\nstages:\n  labels: {kind: labels, data: few, pair_choice: rank}\n"
    )
    refused = call("collect", recipe, "labels", "--annotators", "ada", "--port", "0", cwd=tmp_path)
    assert refused.returncode == 2 and refused.stderr.splitlines() == [
        "stage labels: the data have nothing to label; expected a prompt with two different answers, or three to rank. "
        "Bring more answers"
    ]
