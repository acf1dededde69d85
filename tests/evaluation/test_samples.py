"""A report can be computed again from its samples alone."""

import json

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.evaluation.answers import Answers, Prompt, from_samples, samples
from pipeline.evaluation.comparison import compare, recomputed
from pipeline.evaluation.report.record import read, to_json
from pipeline.evaluation.report.samples import read_samples
from pipeline.evaluation.report.writing import write
from pipeline.evaluation.stats.estimate import rounded
from pipeline.evaluation.stats.intervals import Bootstrap

COUNT = 40


def values(random, shape=COUNT):
    return [rounded(value) for value in random.normal(size=shape).tolist()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report on three models of random figures, written into a folder."""
    random = np.random.default_rng(3)
    prompts = [Prompt(f"p{i}", "ab"[i % 2], i * 2, 7, {"is": i}) for i in range(COUNT)]
    answers = [
        Answers(
            name,
            [f"{name} says {i}\u2028" for i in range(COUNT)],
            lengths=random.integers(1, 9, COUNT).tolist(),
            ended=[stop == "eos" for stop in stops],
            stop_reasons=stops,
            gold=values(random),
            reward=values(random),
            correct=[None if i == 3 else float(random.random() < 0.5) for i in range(COUNT)],
            kl=None if name == "sft" else [float("nan"), *values(random, COUNT - 1)],
            kl_k3=None if name == "sft" else [float("nan"), *map(abs, values(random, COUNT - 1))],
        )
        for name in ("sft", "dpo", "ppo")
        for stops in [random.choice(["eos", "max_new_tokens", "context"], COUNT).tolist()]
    ]
    report = compare(answers, prompts, bootstrap=Bootstrap(seed=7, resamples=300), baseline="sft")
    report = report.model_copy(update={"available": 80, "sampled_by": "task", "warnings": ["w"]})
    folder = tmp_path_factory.mktemp("report")
    write(report, folder, samples(answers, prompts, baseline="sft"))
    return folder


def test_every_figure_and_interval_comes_back(made):
    report = read(made / "report.json")
    again = recomputed(report, read_samples(made / "samples.jsonl"))
    assert to_json(again) == (made / "report.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("key", ["gold", "reward", "correct", "kl", "kl_k3", "length", "stop_reason"])
def test_no_figure_stands_on_anything_else(made, key):
    # Each column of the samples moves a figure; were one of them ignored, this would not fail.
    rows = read_samples(made / "samples.jsonl")
    other = {"stop_reason": "eos" if rows[5].answers["dpo"].stop_reason != "eos" else "context"}
    value = other.get(key) or (getattr(rows[5].answers["dpo"], key) or 0) + 1
    changed = rows[5].answers["dpo"].model_copy(update={key: value})
    rows[5] = rows[5].model_copy(update={"answers": {**rows[5].answers, "dpo": changed}})
    report = read(made / "report.json")
    assert to_json(recomputed(report, rows)) != to_json(report)


def test_what_a_row_holds(made):
    row = json.loads((made / "samples.jsonl").read_text(encoding="utf-8").split("\n")[4])
    assert (row["prompt"], row["task"], row["row"], row["seed"], row["reference"]) == ("p4", "a", 8, 7, {"is": 4})
    assert set(row["answers"]["dpo"]) == {
        *("text", "score", "gold", "reward", "correct", "result", "kl", "kl_k3", "length", "stop_reason"),
    }
    mine, theirs = row["answers"]["dpo"]["gold"], row["answers"]["sft"]["gold"]
    assert row["answers"]["dpo"]["result"] == ("win" if mine > theirs else "loss")
    assert "result" not in row["answers"]["sft"]
    first = json.loads((made / "samples.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert "kl" not in first["answers"]["dpo"]  # an empty answer has none


def test_the_page_shows_the_right_answer_beside_the_two(made):
    assert "Right answer: {'is': " in (made / "report.md").read_text(encoding="utf-8")


def test_there_and_back(made):
    rows = read_samples(made / "samples.jsonl")
    answers, prompts = from_samples(rows)
    assert samples(answers, prompts, baseline="sft", judge="gold") == rows


def test_a_broken_line_is_named(made, tmp_path):
    file = tmp_path / "samples.jsonl"
    file.write_text((made / "samples.jsonl").read_text(encoding="utf-8") + '{"prompt": 3}\n', encoding="utf-8")
    with pytest.raises(PipelineError, match=rf"{file}:41: not a sample"):
        read_samples(file)


def test_reports_of_schema_1_tell_no_seed(made):
    report = read(made / "report.json").model_copy(update={"seed": None})
    with pytest.raises(PipelineError, match="report tells no seed"):
        recomputed(report, read_samples(made / "samples.jsonl"))


def older(rows):
    """Return samples as version 1 of the evaluate stage wrote them: text, score and correctness, nothing else."""
    kept = ("text", "score", "correct", "gold")
    return [
        each.model_copy(
            update={
                "answers": {
                    name: type(answer)(**{key: getattr(answer, key) for key in kept})
                    for name, answer in each.answers.items()
                }
            }
        )
        for each in rows
    ]


def test_samples_of_an_older_version_make_up_neither_length_nor_end(made):
    answers, prompts = from_samples(older(read_samples(made / "samples.jsonl")))
    assert [(each.lengths, each.ended, tuple(each.stop_reasons)) for each in answers] == [(None, None, ())] * 3
    report = compare(answers, prompts, bootstrap=Bootstrap(seed=7, resamples=100), baseline="sft")
    assert all(each.length is None and each.eos_rate is None for each in report.models.values())
    (row, *_) = samples(answers, prompts, baseline="sft")
    assert (row.answers["dpo"].stop_reason, row.answers["dpo"].length) == (None, None)


def test_one_answer_without_an_end_leaves_the_share_of_ended_unknown(made):
    rows = read_samples(made / "samples.jsonl")
    changed = rows[0].answers["dpo"].model_copy(update={"stop_reason": None})
    rows[0] = rows[0].model_copy(update={"answers": {**rows[0].answers, "dpo": changed}})
    answers, _ = from_samples(rows)
    assert {each.name: each.ended is None for each in answers} == {"sft": False, "dpo": True, "ppo": False}


def test_a_model_without_an_answer_is_named(made):
    rows = read_samples(made / "samples.jsonl")
    kept = {name: answer for name, answer in rows[3].answers.items() if name != "ppo"}
    rows[3] = rows[3].model_copy(update={"answers": kept})
    with pytest.raises(PipelineError, match="`ppo` has answers to 39 of 40 prompts; expected one to every prompt"):
        from_samples(rows)


def test_a_prompt_without_a_score_is_refused_by_model_and_judge():
    prompts = [Prompt("a"), Prompt("b"), Prompt("c")]
    sides = {"lengths": [1] * 3, "ended": [True] * 3}
    answers = [
        Answers("sft", ["x"] * 3, **sides, gold=[1.0, 2.0, 3.0]),
        Answers("dpo", ["x"] * 3, **sides, gold=[1.0, float("nan"), 3.0]),
    ]
    with pytest.raises(PipelineError, match=r"^`dpo` has no finite gold score for 1 of 3 prompts; expected a finite"):
        compare(answers, prompts, bootstrap=Bootstrap(seed=0), baseline="sft")
