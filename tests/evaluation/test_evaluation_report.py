"""The report's file and its readers, the final table, and the page."""

import json
import subprocess
import sys

import pytest

from pipeline.errors import PipelineError
from pipeline.evaluation.answers import samples
from pipeline.evaluation.comparison import compare
from pipeline.evaluation.markdown import escaped
from pipeline.evaluation.report.page import regressions, render
from pipeline.evaluation.report.record import Report, read, to_json
from pipeline.evaluation.report.tables import headline, task_table
from pipeline.evaluation.report.writing import write
from pipeline.evaluation.stats.intervals import Bootstrap


@pytest.fixture
def report(answers, prompts):
    return compare(answers, prompts, bootstrap=Bootstrap(seed=0), baseline="sft")


@pytest.fixture
def shown(answers, prompts):
    return samples(answers, prompts, baseline="sft")


def test_json_is_the_promised_shape(report):
    data = json.loads(to_json(report))
    assert data["schema"] == 2
    assert data["baseline"] == "sft"
    assert list(data["models"]) == ["dpo", "sft", "sft (greedy)"]
    dpo = data["models"]["dpo"]
    for metric in ("win_rate", "gold", "reward", "kl", "length", "eos_rate", "correct"):
        assert set(dpo[metric]) == {"value", "low", "high", "n"}, metric
    assert set(dpo["tasks"]["sum"]["correct"]) == {"value", "low", "high", "n"}
    assert dpo["win_rate"]["value"] == 0.8
    assert "win_rate" not in data["models"]["sft"]
    assert "null" not in to_json(report)


def test_reading_gives_back_what_was_written(report, shown, tmp_path):
    files = write(report, tmp_path, shown)
    assert {path.name for path in files} == {
        "report.json",
        "report.md",
        "samples.jsonl",
        "win_rates.svg",
        "tasks.svg",
        "reward_gold.svg",
    }
    again = read(tmp_path / "report.json")
    assert to_json(again) == to_json(report)
    assert again.models["dpo"].lower_tasks(again.level) == ["fact"]
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 20
    assert rows[0]["answers"]["dpo"]["text"] == "Gladly! *0* | <b>"


def broken(report, change):
    data = json.loads(to_json(report))
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=3), "report schema 3; expected at most 2. Upgrade trueup"),
        (lambda d: d.pop("schema"), "schema is None"),
        (lambda d: d.update(baseline="x"), "baseline `x` is not among the models"),
        (lambda d: d["models"]["dpo"]["win_rate"].pop("low"), r"models\.dpo\.win_rate\.low"),
        (lambda d: d["models"]["dpo"]["gold"].update(low=9), r"models\.dpo\.gold.*low 9.0 is above high"),
        (lambda d: d["models"]["dpo"]["gold"].update(n=0), "n is 0"),
        (lambda d: d["models"]["dpo"].update(wni=1), r"models\.dpo\.wni"),
    ],
)
def test_reader_names_what_is_wrong(report, tmp_path, change, message):
    path = tmp_path / "report.json"
    path.write_text(broken(report, change), encoding="utf-8")
    with pytest.raises(PipelineError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_reports_of_schema_1_are_read(report, tmp_path):
    # They told of a task only that gold fell in it, and did not know variants of the baseline.
    data = json.loads(to_json(report)) | {"schema": 1}
    del data["seed"]
    for name, model in data["models"].items():
        model.pop("variant", None)
        for key in ("gold_delta", "reward_delta"):
            model.pop(key, None)
        if "gaming" in model:
            gaming = model["gaming"]
            gaming["surplus"] = gaming.pop("lag")
            gaming.pop("verdict", None)
            gaming["parted_tasks"] = ["fact"] if name == "dpo" else []
            for gains in gaming["tasks"].values():
                gains.pop("lag")
                gains.pop("verdict", None)
    (tmp_path / "report.json").write_text(json.dumps(data), encoding="utf-8")
    old_report = read(tmp_path / "report.json")
    assert old_report.models["dpo"].gaming.gamed_tasks == ["fact"]
    assert (old_report.candidates, old_report.seed, old_report.is_sample) == (["dpo"], None, False)
    assert "dpo" in render(old_report, [], [])


def test_reader_refuses_other_files(tmp_path):
    with pytest.raises(PipelineError, match="no report here"):
        read(tmp_path / "report.json")
    for text in ("{", "[1]", '"x"', "\x00"):
        (tmp_path / "report.json").write_text(text, encoding="utf-8")
        with pytest.raises(PipelineError, match=r"not JSON|schema is None"):
            read(tmp_path / "report.json")


def test_final_table(report):
    header, dpo, sft, greedy = headline(report)
    assert header == [
        "model", "correct", "win rate vs sft", "gold", "reward", "KL", "tokens", "ended", "tasks below sft",
    ]  # fmt: skip
    assert dpo[0] == "dpo"
    assert dpo[2].startswith("80.0 % [")
    # 50 % correct against 100 %: ten of twenty lost, none won, marked.
    # Reward rose from 2 to 5 while those ten fell: the reward model is gamed.
    assert [dpo[1], *dpo[4:]] == ["50.0 % ▼", "5.00 (gamed)", "2.08", "12.0", "95 %", "▼ fact"]
    assert sft == ["sft", "100.0 %", "baseline", "1.00 [1.00, 1.00]", "2.00", "0.00", "10.0", "100 %", "–"]
    assert greedy[5] == "–"
    assert greedy[-1] == "none"
    assert all(len(row) == len(header) and all(isinstance(cell, str) for cell in row) for row in headline(report))


def test_the_first_figure_is_the_one_that_decides(report):
    by_gold = {name: metrics.model_copy(update={"correct": None}) for name, metrics in report.models.items()}
    unchecked = report.model_copy(update={"models": by_gold})
    assert headline(unchecked)[0][1:4] == ["win rate vs sft", "gold", "reward"]
    assert headline(unchecked.model_copy(update={"judge": "reward"}))[0][1:4] == ["gold", "win rate vs sft", "reward"]


def test_columns_without_values_are_left_out(report):
    bare = Report(baseline="a", models={"a": {}, "b": {"win_rate": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}}})
    assert headline(bare) == [["model", "win rate vs a"], ["a", "baseline"], ["b", "50.0 % [40.0, 60.0]"]]


def test_task_table(report):
    assert task_table(report) == [
        ["task", "prompts", "sft", "dpo", "sft (greedy)"],
        ["sum", "10", "100 %", "100 % (0)", "100 % of 9 (0)"],  # one has no checkable answer of the greedy model
        ["fact", "10", "100 %", "0 % (-100) ▼", "100 % (0)"],
    ]


def test_worst_regressions_come_first(shown):
    gaps = regressions(shown, "dpo", "sft")
    assert [gap for gap, _ in gaps] == [-1] * 3 + [0] * 2 + [1] * 15
    # Equal ones in the order of the prompts.
    assert [sample.prompt for _, sample in gaps[:3]] == ["question 17", "question 18", "question 19"]


def test_page(report, shown):
    page = render(report, shown, ["win_rates.svg", "tasks.svg"], title="My | report")
    assert page.startswith("# My \\| report\n")
    assert "15 / 2 / 3" in page
    assert "`dpo@9f31c0`" in page
    assert "**sft** (baseline)" in page
    assert "(win_rates.svg)" in page
    assert "(reward_gold.svg)" not in page
    assert "scored lower on 3 of 20 prompts" in page
    assert page.index("question 17") < page.index("question 18") < page.index("question 14")
    assert "## How to read this" in page
    # 1 - (1 - 0.025)² = 4.9 %
    assert "With 2 tasks, chance alone" in page
    assert "at most 5 % of reports" in page


def test_a_model_cannot_break_the_page(report, shown):
    page = render(report, shown, [])
    assert "<b>" not in page
    assert r"\*17\* \| \<b\>" in page
    for line in page.splitlines():
        if line.startswith("| dpo | -") or line.startswith("| sft | 1.00"):
            assert line.replace(r"\|", "").count("|") == 5
    assert escaped("# a\n\n| b\t`c`\x1b[0m") == r"\# a ⏎ \| b \`c\`�\[0m"
    assert escaped("x" * 50, 10) == "x" * 9 + "…"


def test_same_bytes_in_another_process(tmp_path):
    # Different hash seeds, working directories, and a matplotlibrc that would change every figure.
    script = """
import sys
from pathlib import Path
import numpy as np
from pipeline.evaluation.answers import Answers, Prompt, samples
from pipeline.evaluation.comparison import compare
from pipeline.evaluation.curves.loss_curve import write_curve
from pipeline.evaluation.report.writing import write
from pipeline.evaluation.reward_card.card import build_card, write_card
from pipeline.evaluation.stats.intervals import Bootstrap
random, out = np.random.default_rng(0), Path(sys.argv[1])
prompts = [Prompt(f"p{i}", "ab"[i % 2]) for i in range(50)]
answers = [
    Answers(name, ["x"] * 50, random.integers(1, 9, 50), random.random(50) < 0.9, gold=random.normal(size=50),
            reward=random.normal(size=50), correct=random.random(50) < 0.5,
            kl=random.random(50), kl_k3=random.random(50))
    for name in ("sft", "dpo", "ppo")
]
report = compare(answers, prompts, baseline="sft", bootstrap=Bootstrap(seed=0))
write(report, out, samples(answers, prompts, baseline="sft"))
pairs = {side: random.normal(size=80) for side in ("chosen", "rejected")}
write_card(build_card(**pairs, chosen_lengths=random.integers(1, 9, 80), rejected_lengths=random.integers(1, 9, 80),
                      groups=["u", "v"] * 40, seed=0), out)
write_curve([{"step": i, "loss": 1 / (i + 1), "learning_rate": 0.1, "train_runtime": random.random()}
             for i in range(60)] + [{"step": 59, "eval_loss": 0.5}], out, title="sft")
"""
    outputs = []
    for place, (hash_seed, style) in enumerate([("1", ""), ("2", "font.size: 33\nsvg.fonttype: path\n")]):
        folder, out = tmp_path / f"cwd{place}", tmp_path / f"out{place}"
        folder.mkdir()
        (folder / "matplotlibrc").write_text(style, encoding="utf-8")
        environment = {
            "PYTHONPATH": ":".join(path for path in sys.path if path),
            "PYTHONHASHSEED": hash_seed,
            "HOME": str(tmp_path),
            "OMP_NUM_THREADS": "1",
        }
        subprocess.run([sys.executable, "-c", script, str(out)], cwd=folder, env=environment, check=True, timeout=800)
        outputs.append({path.name: path.read_bytes() for path in sorted(out.iterdir())})
    assert len(outputs[0]) == 12
    assert sum(name.endswith(".svg") for name in outputs[0]) == 6
    assert outputs[0] == outputs[1]


def test_reading_needs_no_numerics():
    # The command line shows a report: it must not pay for numpy, scipy, matplotlib or torch.
    script = (
        "import sys, pipeline.evaluation.report.record; "
        "print(sorted({'numpy', 'scipy', 'matplotlib', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=800)
    assert done.stdout.strip() == "[]"
