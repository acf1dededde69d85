from __future__ import annotations

import math

import pytest
import torch

from pipeline.models.agreement import ROUNDING, disagreement, rounding_of


def test_the_largest_difference_stands_against_the_spread() -> None:
    wanted = [torch.tensor([[1.0, 4.0], [0.0, 2.0]]), torch.tensor([[-3.0, 0.0]])]
    logits = [torch.tensor([[1.0, 4.5], [0.0, 2.0]]), torch.tensor([[-3.25, 0.0]])]
    assert disagreement(logits, wanted) == (0.5, 4.0)  # 4.5 against 4; the first tensor runs from 0 to 4


@pytest.mark.parametrize(("logit", "off"), [(math.nan, math.inf), (-math.inf, 0.0), (1.0, math.inf)])
def test_a_token_that_both_rule_out_makes_no_difference(logit: float, off: float) -> None:
    assert disagreement([torch.tensor([[logit, 2.0]])], [torch.tensor([[-math.inf, 2.0]])])[0] == off


def test_a_score_stands_against_one_at_least() -> None:
    assert disagreement([torch.tensor([[0.01]])], [torch.tensor([[0.02]])]) == (pytest.approx(0.01), 1.0)
    assert disagreement([torch.tensor([[-7.0]])], [torch.tensor([[-8.0]])]) == (1.0, 8.0)


def test_half_precision_and_autocast_round_more() -> None:
    model = torch.nn.Linear(2, 2)
    model.device = torch.device("cpu")
    assert rounding_of(model) == ROUNDING["fp32"]
    with torch.autocast("cpu", torch.bfloat16):
        assert rounding_of(model) == ROUNDING["half"]
    assert rounding_of(model.to(torch.bfloat16)) == ROUNDING["half"]
