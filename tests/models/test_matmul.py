"""The fast matmul is exact fp32, keeps attention's gradients, and is chosen by the machine alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.models.cpu import matmul

PROBE = """
import torch
from pipeline.models.cpu.matmul import use_fastest_matmul
torch.manual_seed(0)
a, b = torch.randn(256, 300), torch.randn(300, 200)
q, k, v = (torch.randn(2, 3, 40, 16, requires_grad=True) for _ in range(3))
def attention():
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v))]
plain = attention()
name = use_fastest_matmul()
assert use_fastest_matmul() == name
exact = (a.double() @ b.double()).float()
error = float((a @ b - exact).abs().max())
assert error < 1e-4, error  # bfloat16 would be off by 0.1
for mine, other in zip(attention(), plain, strict=True):
    torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)
before = torch.backends.mkldnn.matmul.fp32_precision
try:
    torch.nn.functional.scaled_dot_product_attention(q, k[..., :8], v, is_causal=True)
except RuntimeError:
    pass
assert torch.backends.mkldnn.matmul.fp32_precision == before
print(name)
"""


def test_products_and_attention_are_those_of_plain_fp32() -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ("onednn" if matmul._mkl_is_slow() else "mkl")


def test_a_permission_that_rounds_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "_mkl_is_slow", lambda: True)
    monkeypatch.setattr(matmul, "_is_exact", lambda: False)
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        assert matmul.use_fastest_matmul() == "mkl"
        assert torch.backends.mkldnn.matmul.fp32_precision == "none"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def test_the_check_of_exactness_sees_bfloat16() -> None:
    assert matmul._is_exact()
    fine = torch.full((64, 64), 1 + 2**-20).bfloat16().float()
    assert not bool((fine == 1 + 2**-20).any())
