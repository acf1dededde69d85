"""Consolidates the optimizer state that DeepSpeed's ZeRO shards, and shards a consolidated one.

A state that is kept whole goes on with another ZeRO stage, another number of processes, or without ZeRO. Every process
calls what gathers and what shares out. Knows nothing of files.

Reference: Rajbhandari et al. 2020, arXiv:1910.02054.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.parallel.ranks import Ranks


class ZeroState:
    """The fp32 weights and the optimizer's memory of them, whole, by weight.

    Attributes:
        held: DeepSpeed's optimizer.
        stage: of ZeRO.
        groups: weights of each of the optimizer's groups, as it was given them; none is empty.
    """

    def __init__(self, held: Any, stage: int, groups: Sequence[Sequence[nn.Parameter]], ranks: Ranks) -> None:
        self.held, self.stage, self.groups, self.ranks = held, stage, groups, ranks

    def flat(self, group: int) -> list[Tensor]:
        """Return the flat weights, this process's parts, that the inner optimizer knows of a group."""
        if self.stage == 3:
            parts = self.held.fp32_partitioned_groups_flat
            return [flat for i, flat in enumerate(parts) if self.held.sub_group_to_group_id[i] == group]
        return [self.held.single_partition_of_fp32_groups[group]]

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """Gather a weight that is trained, in fp32."""
        from deepspeed.utils import safe_get_full_fp32_param

        return _own(safe_get_full_fp32_param(parameter), parameter)

    @torch.no_grad()
    def set_weight(self, parameter: nn.Parameter, whole: Tensor) -> None:
        """Share a weight out: to the forward pass, and to the optimizer where it is trained."""
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self.stage == 3):
            parameter.data.copy_(whole)
        if parameter.requires_grad:
            self._share_out(parameter, whole)

    def known(self, group: int) -> tuple[list[str], dict[str, Any]]:
        """Return what the inner optimizer remembers of a group: names of one number a weight, and all else by name.

        Before its first step that is nothing.
        """
        for flat in self.flat(group):
            state = self.held.optimizer.state.get(flat, {})
            moments = [key for key, value in state.items() if _is_like(value, flat)]
            return moments, {key: value for key, value in state.items() if key not in moments}
        return [], {}

    def begin(self, group: int, moments: Sequence[str], rest: Mapping[str, Any]) -> None:
        """Let the inner optimizer remember a group: zeros, to be filled with `set_moment`, and ``rest`` as it is."""
        for flat in self.flat(group):
            # A fused optimizer counts its steps on the device.
            copied = {k: v.to(flat.device, copy=True) if isinstance(v, Tensor) else v for k, v in rest.items()}
            self.held.optimizer.state[flat] = {**copied, **{key: torch.zeros_like(flat) for key in moments}}

    def link(self) -> None:
        """Let each weight know where its moments lie: DeepSpeed does so once, and for groups that have stepped."""
        if self.stage < 3:
            self.held._hp_optimizer_states_linked = False
            self.held._lazy_init_hp_params_optimizer_state()

    def moment(self, parameter: nn.Parameter, key: str) -> Tensor:
        """Gather one of the moments of a weight; after `link`."""
        from deepspeed.utils import safe_get_full_optimizer_state

        return _own(safe_get_full_optimizer_state(parameter, key), parameter)

    def set_moment(self, parameter: nn.Parameter, key: str, whole: Tensor) -> None:
        """Share one of the moments of a weight out; after `begin` and `link`."""
        self._share_out(parameter, whole, key)

    def _share_out(self, parameter: nn.Parameter, whole: Tensor, moment: str | None = None) -> None:
        """Put this process's part of a weight, or of one of its moments, where DeepSpeed holds it."""
        from deepspeed import utils

        flat = whole.to(parameter.device).float().flatten()
        if self.stage < 3:
            if moment is None:
                utils.safe_set_full_fp32_param(parameter, flat)
            else:
                utils.safe_set_full_optimizer_state(parameter, flat, moment)
            return
        # Not the whole weight: DeepSpeed cannot cut one that is smaller than the number of processes.
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = torch.cat([flat, flat.new_zeros(size * self.ranks.count - flat.numel())])
        part = padded[size * self.ranks.index :][:size]
        if moment is None:
            utils.safe_set_local_fp32_param(parameter, part)
        else:
            utils.safe_set_local_optimizer_state(parameter, part, moment)


def share_fp32(held: Any) -> None:
    """Let ZeRO-3 keep weights that are fp32 once: as the flat weights its optimizer steps on.

    DeepSpeed means to (`stage3.py`, `_create_fp32_partitions`, the branch without `converted`), but asks for it with
    ``tensor.device == self.device``, a `torch.device` and a string, which are never equal (DeepSpeed 0.19.8): it makes
    a copy, and copies it back after each step. Weights in 16 bits need theirs.

    Args:
        held: DeepSpeed's optimizer.
    """
    for flat, copy in zip(held.fp16_partitioned_groups_flat, held.fp32_partitioned_groups_flat, strict=True):
        if flat is not None and (flat.dtype, flat.device) == (copy.dtype, copy.device):
            copy.data = flat.data  # the optimizer knows it as this very tensor


def _own(whole: Tensor, parameter: nn.Parameter) -> Tensor:
    """Return a copy of a gathered tensor in the shape of its weight, which may be sharded itself."""
    return whole.detach().reshape(getattr(parameter, "ds_shape", parameter.shape)).cpu().clone()


def _is_like(value: Any, flat: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == flat.shape
