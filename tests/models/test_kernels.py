"""Which kernels are chosen where, and that attending without a mask computes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.models.cpu.precision import computing_in
from pipeline.models.load.kernels import WITHOUT_MASK, attention_of, uses_liger, without_mask
from pipeline.models.load.scratch import build_causal_lm

Here = Callable[[str], bool]


def _with(*modules: str) -> Here:
    return lambda module: module in modules


@pytest.mark.parametrize(
    ("asked", "on_gpu", "precision", "there", "chosen"),
    [
        ("auto", False, "fp32", ("flash_attn",), None),  # a CPU leaves the choice to transformers
        ("auto", True, "bf16", (), None),
        ("auto", True, "bf16", ("flash_attn",), "flash_attention_2"),
        ("auto", True, "fp16", ("flash_attn", "flash_attn_interface"), "flash_attention_3"),
        ("auto", True, "fp32", ("flash_attn",), None),  # it has no fp32
        ("auto", True, "bf16", ("kernels",), None),  # nothing is fetched from a hub unasked
        ("flash", True, "bf16", ("kernels",), "flash_attention_2"),
        ("sdpa", True, "bf16", ("flash_attn",), "sdpa"),
        ("eager", False, "fp32", (), "eager"),
    ],
)
def test_attention_is_the_fastest_that_is_there(
    asked: Any, on_gpu: bool, precision: str, there: tuple[str, ...], chosen: str | None
) -> None:
    assert attention_of(asked, on_gpu=on_gpu, precision=precision, is_there=_with(*there)) == chosen


@pytest.mark.parametrize(
    ("on_gpu", "precision", "there", "why"),
    [
        (False, "bf16", ("flash_attn",), "there is no GPU"),
        (True, "fp32", ("flash_attn",), "the stage computes in fp32"),
        (True, "bf16", (), "FlashAttention is not installed"),
    ],
)
def test_flash_where_it_cannot_be_is_an_error_of_one_line(
    on_gpu: bool, precision: str, there: tuple[str, ...], why: str
) -> None:
    with pytest.raises(PipelineError, match=f"compute.attention is flash, but {why}") as caught:
        attention_of("flash", on_gpu=on_gpu, precision=precision, is_there=_with(*there))
    assert caught.value.exit_code == 2
    assert "compute." in caught.value.problems[0].remedy


def test_liger_is_used_where_it_is_and_refused_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    there = _with("liger_kernel")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert uses_liger("on", on_gpu=False, is_there=there) and not uses_liger("auto", on_gpu=False, is_there=there)
    with pytest.raises(PipelineError, match="no GPU"):
        uses_liger("on", on_gpu=False, is_there=_with())
    monkeypatch.delenv("TRITON_INTERPRET")
    assert uses_liger("auto", on_gpu=True, is_there=there)
    assert not uses_liger("auto", on_gpu=False, is_there=there)
    assert not uses_liger("off", on_gpu=True, is_there=there)
    for on_gpu, here, why in ((True, _with(), "not installed"), (False, there, "no GPU")):
        with pytest.raises(PipelineError, match=why):
            uses_liger("on", on_gpu=on_gpu, is_there=here)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_rows_padded_on_the_right_need_no_mask(name: str, tiny_specs: Any, tokenizer: Any) -> None:
    model = build_causal_lm(tiny_specs[name], tokenizer, seed=1).eval()
    ids = torch.arange(2 * 12).reshape(2, 12) % 50 + 5
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask).logits
        assert without_mask(model)
        after = model(input_ids=ids, attention_mask=mask).logits
    assert model.config._attn_implementation == WITHOUT_MASK
    # Real tokens only: what padding computes nobody reads.
    torch.testing.assert_close(after[mask.bool()], before[mask.bool()], rtol=1e-5, atol=1e-5)


def test_a_window_keeps_its_mask(tiny_specs: Any, tokenizer: Any) -> None:
    spec = {**tiny_specs["llama"], "type": "mistral", "sliding_window": 4}
    assert not without_mask(build_causal_lm(spec, tokenizer, seed=1))


def test_computing_in_half_precision_leaves_weights_alone() -> None:
    layer = torch.nn.Linear(4, 4)
    with computing_in("bf16", "cpu"):
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
    with computing_in("fp32", "cpu"):
        assert layer(torch.ones(1, 4)).dtype == torch.float32
    assert layer.weight.dtype == torch.float32
