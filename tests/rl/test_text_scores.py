"""Scores of answers by reward models: as many processes as there may be, one result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import be_rank, run_ranks

from pipeline.errors import PipelineError
from pipeline.kind.compute import ComputeSettings
from pipeline.models.scoring import finite
from pipeline.parallel.dims import ParallelDims
from pipeline.parallel.process_group import init_process_group
from pipeline.parallel.ranks import Ranks
from pipeline.rl.rewards import texts
from pipeline.rl.rewards.texts import Answered, scores_by_model
from pipeline.stage import ResolvedInput, StageContext

ANSWERS = [f"it is {colour} ." for colour in ("red", "blue", "green", "white", "black", "grey", "red and blue")]
ASKED = [{"prompt": [{"role": "user", "content": f"which colour has the {thing} ?"}]} for thing in "abcdefg"]


def scored(model: Path, work: Path, count: int = 1, rank: int = 0) -> dict[str, list[float]]:
    """Score seven answers, two at once."""
    context = StageContext(
        name="scores",
        seed=3,
        out=work,
        work=work,
        inputs={"reward": [ResolvedInput(ref="rm", name="rm", kind="reward", fingerprint="f", path=str(model))]},
        load_rows=lambda field: pytest.fail(f"nothing reads {field} here"),
        compute=ComputeSettings(device="cpu", threads=1),
        dims=ParallelDims(world_size=count),
        rank=rank,
        emit=lambda event: None,
        stopping=lambda: False,
    )
    texts.AT_ONCE = 2
    return scores_by_model(context, "reward", Answered(ASKED, ANSWERS))


def main(model: str, work: str, out: str) -> None:
    init_process_group(cpu=True, deepspeed=False)
    ranks = Ranks.current()
    scores = scored(Path(model), Path(work), ranks.count, ranks.index)
    Path(out, f"{ranks.index}.json").write_text(json.dumps(scores))


def test_three_processes_score_as_one(chain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "AT_ONCE", 2)
    alone = tmp_path / "alone"
    alone.mkdir()
    expected = scored(chain["rm"].path, alone)
    assert len(set(expected["rm"])) > 3
    files = {file.name for file in (alone / "scores").iterdir()}
    assert len(files) == 4  # 2 + 2 + 2 + 1
    work = tmp_path / "three"
    work.mkdir()
    run_ranks(__file__, str(chain["rm"].path), str(work), str(tmp_path), count=3)
    for rank in range(3):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected
    assert {file.name for file in (work / "scores").iterdir()} == files
    # What is kept is not scored again: without a model there is nothing to load.
    assert scored(tmp_path / "nowhere", work) == expected


if __name__ == "__main__":
    be_rank(main)


def test_a_score_that_is_no_number_is_refused() -> None:
    assert finite([1.0, -2.0], "rm") == [1.0, -2.0]
    for value in (float("nan"), float("inf")):
        with pytest.raises(PipelineError, match=r"^rm gives a score that is no finite number; expected finite scores"):
            finite([1.0, value], "rm")
