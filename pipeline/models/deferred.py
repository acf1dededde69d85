"""A model built without its weights: later those that are wanted get the numbers they would have had, bit for bit.

While a model is built, large tensors are given no memory; what is drawn for them is drawn and dropped, so that random
numbers go on as they would, and noted with the generator's state. A wanted weight is then made and what was noted of it
is done again. So a process that keeps a part of a model never holds the whole. Knows nothing of processes.

The idea is that of torchdistx's deferred initialisation, which is no longer kept up.
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

_EMPTY = torch.ops.aten.empty.memory_format
_RANDOM = {torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default}
_SILENT = {torch.ops.aten.detach.default, torch.ops.aten.set_.source_Tensor}


@dataclass(frozen=True)
class _Change:
    """A change of a tensor's storage: the operation, the view it was done to, and the random state before."""

    operation: Callable[..., Any]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    args: tuple[Any, ...]
    options: dict[str, Any]
    state: Tensor | None


class _Storage(NamedTuple):
    """A storage without memory, kept alive so that its address stays its own, and its changes."""

    alive: Any
    changes: list[_Change]


class Deferred(TorchDispatchMode):
    """Context in which a model is built on the CPU without memory for its weights; `fill` gives it to some."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages: dict[int, _Storage] = {}
        self._scratch = torch.empty(0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note a change of a tensor without memory; everything else runs as it is."""
        options = dict(kwargs or {})
        if func is _EMPTY and str(options.get("device") or "cpu") == "cpu":
            return func(*args, **{**options, "device": "meta", "pin_memory": None})
        target = args[0] if args else None
        if not func._schema.is_mutable or not isinstance(target, Tensor) or not target.is_meta or func in _SILENT:
            return func(*args, **options)
        state = None
        if func in _RANDOM:
            state = torch.get_rng_state()
            func(self._drop(target), *args[1:], **options)
        storage = target.untyped_storage()
        noted = self._storages.setdefault(storage._cdata, _Storage(storage, []))
        size, stride, offset = tuple(target.shape), target.stride(), int(target.storage_offset())
        noted.changes.append(_Change(func, size, stride, offset, tuple(args[1:]), options, state))
        return target if func in _RANDOM else func(*args, **options)

    def __exit__(self, *error: Any) -> None:
        """Leave the context."""
        self._scratch = torch.empty(0)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _drop(self, like: Tensor) -> Tensor:
        """Return memory to draw into: the same each time, since states kept between would scatter what is freed."""
        if self._scratch.numel() < like.numel() or self._scratch.dtype != like.dtype:
            self._scratch = torch.empty(like.numel(), dtype=like.dtype, device="cpu")
        return self._scratch[: like.numel()].view(like.shape)

    def fill(self, module: nn.Module) -> None:
        """Give the parameters of a module that have no memory theirs; what they share they go on sharing."""
        made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # those replaced stay alive: their ids are keys
        for inside in module.modules():
            for name, parameter in inside._parameters.items():
                if parameter is None or not self._lacks(parameter):
                    continue
                if id(parameter) not in made:
                    made[id(parameter)] = parameter, nn.Parameter(self.made(parameter), parameter.requires_grad)
                inside._parameters[name] = made[id(parameter)][1]

    def _lacks(self, parameter: Tensor) -> bool:
        return parameter.is_meta

    @torch.no_grad()
    def made(self, parameter: Tensor) -> Tensor:
        """Return a weight that has no memory, with the numbers it would have had."""
        real = torch.empty(parameter.shape, dtype=parameter.dtype)
        noted = self._storages.get(parameter.untyped_storage()._cdata)
        with torch.random.fork_rng(devices=[]):
            for change in noted.changes if noted is not None else ():
                if change.state is not None:
                    torch.set_rng_state(change.state)
                view = real.as_strided(change.size, change.stride, change.offset)
                change.operation(view, *change.args, **change.options)
        return real


class Stored(Deferred):  # type: ignore[no-untyped-call]
    """The same for a model whose weights are read from files, each only once it is wanted.

    Attributes:
        files: name of a tensor to its file.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        super().__init__()
        self.files = files
        self._names: dict[int, tuple[str, nn.Parameter]] = {}

    def knows(self, model: nn.Module) -> bool:
        """Remember the names of a model's parameters; return whether the files have them all by these names."""
        self._names = {id(parameter): (name, parameter) for name, parameter in model.named_parameters()}
        return all(name in self.files for name, _ in self._names.values())

    def _lacks(self, parameter: Tensor) -> bool:
        return id(parameter) in self._names

    @torch.no_grad()
    def made(self, parameter: Tensor) -> Tensor:
        """Return a weight as its file has it."""
        name, _ = self._names[id(parameter)]
        with safe_open(self.files[name], framework="pt") as tensors:
            return torch.empty(parameter.shape, dtype=parameter.dtype).copy_(tensors.get_tensor(name))  # not the map


def tensor_files(folder: Path) -> dict[str, Path]:
    """Return which file of a folder's safetensors holds which tensor."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            found.update(dict.fromkeys(tensors.keys(), file))
    return found
