"""A small comparison whose every figure can be worked out by hand."""

import numpy as np
import pytest
from hypothesis import settings

from pipeline.evaluation.answers import Answers, Prompt

settings.register_profile("any machine", deadline=None)  # a law does not break because a neighbour is busy
settings.load_profile("any machine")

TASKS = ["sum", "fact"] * 10


@pytest.fixture
def prompts():
    """Twenty prompts, two tasks in turn."""
    return [Prompt(f"question {i}", task) for i, task in enumerate(TASKS)]


@pytest.fixture
def answers():
    """A baseline, a model that wins by tone and forgets facts, and greedy decoding of the baseline.

    sft: gold 1 everywhere, all correct. dpo: gold 2 on the first 15 prompts, 1 on the next 2, 0 on the last 3; every
    sum right, every fact wrong. greedy: gold 1 everywhere; correct unknown on the first prompt.
    """
    # Of three tokens each is twice as likely under the policy: k1 is ln 2 each, k3 is -1/2 + ln 2.
    moved = {"kl": [3 * np.log(2)] * 20, "kl_k3": [3 * (np.log(2) - 0.5)] * 20}
    still = {"kl": [0.0] * 20, "kl_k3": [0.0] * 20}
    return [
        Answers(
            "dpo",
            [f"Gladly! *{i}* | <b>" for i in range(20)],
            lengths=[12] * 20,
            ended=[True] * 19 + [False],
            gold=[2] * 15 + [1] * 2 + [0] * 3,
            reward=[5] * 20,
            correct=[task == "sum" for task in TASKS],
            **moved,
            nll=[12.0, 36.0] * 10,
            ref="dpo@9f31c0",
        ),
        Answers(
            "sft",
            [f"It is {i}." for i in range(20)],
            lengths=[10] * 20,
            ended=[True] * 20,
            gold=[1] * 20,
            reward=[2] * 20,
            correct=[1] * 20,
            **still,
            ref="sft@1234ab",
        ),
        Answers(
            "sft (greedy)",
            [f"It is {i}." for i in range(20)],
            lengths=[8, 10] * 10,
            nll=[8.0, 20.0] * 10,
            ended=[True] * 20,
            gold=[1] * 20,
            reward=[2] * 20,
            correct=[None] + [1] * 19,
            is_variant=True,
        ),
    ]
