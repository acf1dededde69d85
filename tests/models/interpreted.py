"""Lets Liger's kernels run without a GPU: in Triton's interpreter, completed where it lacks what a GPU has.

Import it before Liger; `TRITON_INTERPRET=1` must be set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime import interpreter

_convert = interpreter._implicit_cvt


def _as_compiled(argument: Any) -> Any:
    """Hand a kernel its floats as fp32 scalars, as a compiled one gets them; the interpreter leaves Python's."""
    if isinstance(argument, float):
        return tl.tensor(interpreter.TensorHandle(np.array([argument], np.float32), tl.float32), tl.float32)
    return _convert(argument)


def _elementwise(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Stand for a function of CUDA's library, which the interpreter has not."""

    def apply(x: Any) -> Any:
        values = function(x.handle.data).astype(x.handle.data.dtype)
        return tl.tensor(interpreter.TensorHandle(values, x.handle.dtype), x.type)

    return apply


interpreter._implicit_cvt = _as_compiled
libdevice.rsqrt = _elementwise(lambda x: 1 / np.sqrt(x))
libdevice.tanh = _elementwise(np.tanh)
