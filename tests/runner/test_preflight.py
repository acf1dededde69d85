"""What is known before anything runs: an engine the machine lacks."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline import preflight
from pipeline.errors import PipelineError


@pytest.fixture
def without_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = preflight.installed
    monkeypatch.setattr(preflight, "installed", lambda package: "" if package == "deepspeed" else real(package))


@pytest.mark.usefixtures("without_deepspeed")
def test_zero_without_deepspeed_is_refused_by_stage_with_the_command_that_installs_it(fresh: Any) -> None:
    plan = fresh.plan("compute.zero=2", "stages.dpo.compute.zero=0")
    with pytest.raises(PipelineError) as error:
        preflight.check_plan(plan, fresh.store)
    problems = error.value.problems
    assert [problem.stage for problem in problems] == ["base", "sft", "rm"]  # a tokenizer and a report run alone
    assert problems[0].found == "compute.zero is 2, DeepSpeed is not installed"
    assert problems[0].remedy == "pip install 'trueup[deepspeed]'"


@pytest.mark.usefixtures("without_deepspeed")
def test_another_machine_may_have_it(fresh: Any) -> None:
    preflight.check_plan(fresh.plan("compute.zero=2", "compute.launcher=slurm"), fresh.store)
    preflight.check_plan(fresh.plan(), fresh.store)
