"""Chooses the library that multiplies fp32 matrices on a CPU.

torch's CPU builds use MKL, which limits itself to AVX2 on processors that are not Intel's. oneDNN, in the same build,
uses AVX-512 there: 265 against 118 GFLOP/s on a Zen 5 core (`docs/log.md`). torch routes fp32 products to oneDNN only
if they may be computed in bfloat16, which oneDNN does only on processors with AMX. So that permission is given, and
taken back if a test product is rounded. Attention stays with MKL, because oneDNN needs more time to prepare its many
small products than to compute them.

The choice depends on the machine and not on timing, so the same machine computes the same bits.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

_torch: Any = torch  # the parts of torch used here have no types

_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
_libraries: list[Any] = []
"""Keeps the attention kernels registered until the process ends."""


def use_fastest_matmul() -> str:
    """Choose the library for this process; return its name, `onednn` or `mkl`. A second call changes nothing."""
    if not _mkl_is_slow():
        return "mkl"
    _settings().fp32_precision = "bf16"
    if not _is_exact():
        _settings().fp32_precision = "none"
        return "mkl"
    if not _libraries:
        _libraries.append(_torch.library.Library("aten", "IMPL"))
        for name in (_ATTENTION, f"{_ATTENTION}_backward"):
            _keep_with_mkl(_libraries[0], name)
    return "onednn"


def _keep_with_mkl(library: Any, name: str) -> None:
    """Override an operator's CPU kernel by one that takes the bfloat16 permission back while it runs."""
    kernel = _torch.library.get_kernel(f"aten::{name}", "CPU")

    def with_mkl(keys: object, *arguments: object, **named: Any) -> Any:
        before = _settings().fp32_precision
        _settings().fp32_precision = "none"
        try:
            return kernel.call_boxed(keys, *arguments, **named)
        finally:
            _settings().fp32_precision = before

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the warning that a kernel is overridden
        library.impl(name, with_mkl, "CPU", with_keyset=True, allow_override=True)


def _settings() -> Any:
    return _torch.backends.mkldnn.matmul


def _mkl_is_slow() -> bool:
    """Return whether this is an AVX-512 processor that MKL does not use fully."""
    has_both = _torch.backends.mkl.is_available() and _torch.backends.mkldnn.is_available()
    return has_both and torch.backends.cpu.get_cpu_capability() == "AVX512" and _vendor() == "AuthenticAMD"


def _vendor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return ""
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def _is_exact() -> bool:
    """Return whether a product keeps a digit that bfloat16 would round away: 1 + 2^-20, times the identity."""
    fine = torch.full((64, 64), 1 + 2**-20)
    return bool((fine @ torch.eye(64) == fine).all())
