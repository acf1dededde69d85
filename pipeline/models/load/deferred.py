"""Deferred initialisation: builds a model without its weights, and materialises some of them later, bit for bit.

While a model is built, its weights are on the meta device. Each operation that would change a weight is recorded with
the random generator's state; random draws are made and discarded, so the random stream stays the same. To materialise a
weight, its recorded operations are replayed. A process that needs a part of a model therefore never holds all of it.
Knows nothing of ranks.

The idea is that of torchdistx's deferred initialisation, which is no longer maintained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.plain_data import KeywordArguments

_EMPTY_OP = torch.ops.aten.empty.memory_format
_RANDOM_OPS = {torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default}
_UNRECORDED_OPS = {torch.ops.aten.detach.default, torch.ops.aten.set_.source_Tensor}


@dataclass(frozen=True)
class _Change:
    """A recorded in-place operation: the operation, the view it changed, and the random state before it."""

    operation: Callable[..., Any]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    args: tuple[Any, ...]
    options: KeywordArguments
    state: Tensor | None


class _Storage(NamedTuple):
    """A meta storage and its recorded operations; it is kept alive so that its address stays unique."""

    alive: Any
    changes: list[_Change]


class Deferred(TorchDispatchMode):
    """Context in which a model is built on the meta device instead of the CPU; `fill` materialises its weights."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages: dict[int, _Storage] = {}
        self._scratch = torch.empty(0)

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        """Record an in-place operation on a meta tensor; run every other operation unchanged."""
        options = dict(kwargs or {})
        if func is _EMPTY_OP and str(options.get("device") or "cpu") == "cpu":
            return func(*args, **{**options, "device": "meta", "pin_memory": None})
        target = args[0] if args else None
        if (
            not func._schema.is_mutable
            or not isinstance(target, Tensor)
            or not target.is_meta
            or func in _UNRECORDED_OPS
        ):
            return func(*args, **options)
        state = None
        if func in _RANDOM_OPS:
            state = torch.get_rng_state()
            func(self._drop(target), *args[1:], **options)
        storage = target.untyped_storage()
        recorded = self._storages.setdefault(storage._cdata, _Storage(storage, []))
        size, stride, offset = tuple(target.shape), target.stride(), int(target.storage_offset())
        recorded.changes.append(_Change(func, size, stride, offset, tuple(args[1:]), options, state))
        return target if func in _RANDOM_OPS else func(*args, **options)

    def __exit__(self, *error: object) -> None:
        """Leave the context and free the scratch tensor."""
        self._scratch = torch.empty(0)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _drop(self, like: Tensor) -> Tensor:
        """Return a scratch tensor for a discarded draw; it is reused, because new ones would fragment memory."""
        if self._scratch.numel() < like.numel() or self._scratch.dtype != like.dtype:
            self._scratch = torch.empty(like.numel(), dtype=like.dtype, device="cpu")
        return self._scratch[: like.numel()].view(like.shape)

    def fill(self, module: nn.Module) -> None:
        """Materialise a module's parameters; tied parameters stay tied."""
        materialised: dict[
            int, tuple[nn.Parameter, nn.Parameter]
        ] = {}  # keeps the replaced ones alive: their ids are keys
        for inside in module.modules():
            for name, parameter in inside._parameters.items():
                if parameter is None or not self._lacks(parameter):
                    continue
                if id(parameter) not in materialised:
                    materialised[id(parameter)] = parameter, nn.Parameter(self.made(parameter), parameter.requires_grad)
                inside._parameters[name] = materialised[id(parameter)][1]

    def _lacks(self, parameter: Tensor) -> bool:
        return parameter.is_meta

    @torch.no_grad()
    def made(self, parameter: Tensor) -> Tensor:
        """Materialise a weight on the CPU: replay its recorded operations."""
        weight = torch.empty(parameter.shape, dtype=parameter.dtype)
        recorded = self._storages.get(parameter.untyped_storage()._cdata)
        with torch.random.fork_rng(devices=[]):
            for change in recorded.changes if recorded is not None else ():
                if change.state is not None:
                    torch.set_rng_state(change.state)
                view = weight.as_strided(change.size, change.stride, change.offset)
                change.operation(view, *change.args, **change.options)
        return weight


class Stored(Deferred):  # type: ignore[no-untyped-call]
    """Deferred loading: weights are read from files, each only when it is materialised.

    Attributes:
        files: tensor name to safetensors file.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        super().__init__()
        self.files = files
        self._names: dict[int, tuple[str, nn.Parameter]] = {}

    def knows(self, model: nn.Module) -> bool:
        """Record the names of a model's parameters; return whether the files hold a tensor for each name."""
        self._names = {id(parameter): (name, parameter) for name, parameter in model.named_parameters()}
        return all(name in self.files for name, _ in self._names.values())

    def _lacks(self, parameter: Tensor) -> bool:
        return id(parameter) in self._names

    @torch.no_grad()
    def made(self, parameter: Tensor) -> Tensor:
        """Read a weight from its file, as a copy and not as a memory map."""
        name, _ = self._names[id(parameter)]
        with safe_open(self.files[name], framework="pt") as tensors:
            return torch.empty(parameter.shape, dtype=parameter.dtype).copy_(tensors.get_tensor(name))


def tensor_files(folder: Path) -> dict[str, Path]:
    """Map each tensor name to the safetensors file of a folder that holds it."""
    files = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            files.update(dict.fromkeys(tensors.keys(), file))
    return files
