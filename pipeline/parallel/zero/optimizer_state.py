"""Consolidates the optimizer state that DeepSpeed's ZeRO shards, and shards a consolidated one.

A consolidated state can be resumed with another ZeRO stage, another number of ranks, or without ZeRO. Every rank must
call the methods that gather or shard. Reads and writes no files.

Reference: Rajbhandari et al. 2020, arXiv:1910.02054.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import StateDict

from pipeline.parallel.ranks import Ranks

if TYPE_CHECKING:
    from deepspeed.runtime.base_optimizer import ZeROOptimizer


class ZeroState:
    """Access to full fp32 weights and optimizer state, one parameter at a time, under ZeRO.

    Attributes:
        held: DeepSpeed's ZeRO optimizer.
        stage: ZeRO stage, 1 to 3.
        groups: parameters of each parameter group, as the optimizer was given them; no group is empty.
        ranks: all ranks of the run.
    """

    def __init__(self, held: ZeROOptimizer, stage: int, groups: Sequence[Sequence[nn.Parameter]], ranks: Ranks) -> None:
        import deepspeed  # optional extra `deepspeed`

        self._deepspeed: Any = deepspeed
        self.held, self.stage, self.groups, self.ranks = held, stage, groups, ranks

    def flat(self, group: int) -> list[Tensor]:
        """Return this rank's flat fp32 partitions of a parameter group, which the inner optimizer updates."""
        if self.stage == 3:
            partitions = self.held.fp32_partitioned_groups_flat
            return [flat for i, flat in enumerate(partitions) if self.held.sub_group_to_group_id[i] == group]
        return [self.held.single_partition_of_fp32_groups[group]]

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """Gather the full fp32 weight of a trained parameter."""
        return _full_copy(self._deepspeed.utils.safe_get_full_fp32_param(parameter), parameter)

    @torch.no_grad()
    def set_weight(self, parameter: nn.Parameter, whole: Tensor) -> None:
        """Set a parameter from its full weight: the forward pass's copy, and the optimizer's fp32 copy if trained."""
        with self._deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self.stage == 3):
            parameter.data.copy_(whole)
        if parameter.requires_grad:
            self._set_shard(parameter, whole)

    def known(self, group: int) -> tuple[list[str], StateDict]:
        """Return the inner optimizer's state of a group: names of per-element moments, and all other state by name.

        Both are empty before the first step.
        """
        for flat in self.flat(group):
            state = self.held.optimizer.state.get(flat, {})
            moments = [key for key, value in state.items() if _has_shape_of(value, flat)]
            return moments, {key: value for key, value in state.items() if key not in moments}
        return [], {}

    def begin(self, group: int, moments: Sequence[str], rest: Mapping[str, object]) -> None:
        """Create the inner optimizer's state of a group: moments as zeros, for `set_moment` to fill, and ``rest``."""
        for flat in self.flat(group):
            # A fused optimizer keeps its step count on the device.
            copied = {k: v.to(flat.device, copy=True) if isinstance(v, Tensor) else v for k, v in rest.items()}
            self.held.optimizer.state[flat] = {**copied, **{key: torch.zeros_like(flat) for key in moments}}

    def link(self) -> None:
        """Link each parameter to its optimizer state again; DeepSpeed does so once, for groups that have stepped."""
        if self.stage < 3:
            self.held._hp_optimizer_states_linked = False
            self.held._lazy_init_hp_params_optimizer_state()

    def moment(self, parameter: nn.Parameter, key: str) -> Tensor:
        """Gather one full moment of a parameter; call `link` first."""
        return _full_copy(self._deepspeed.utils.safe_get_full_optimizer_state(parameter, key), parameter)

    def set_moment(self, parameter: nn.Parameter, key: str, whole: Tensor) -> None:
        """Set one moment of a parameter from the full tensor; call `begin` and `link` first."""
        self._set_shard(parameter, whole, key)

    def _set_shard(self, parameter: nn.Parameter, full: Tensor, moment: str | None = None) -> None:
        """Write this rank's shard of a full weight, or of one of its moments, into DeepSpeed's partition."""
        utils, flat = self._deepspeed.utils, full.to(parameter.device).float().flatten()
        if self.stage < 3:
            if moment is None:
                utils.safe_set_full_fp32_param(parameter, flat)
            else:
                utils.safe_set_full_optimizer_state(parameter, flat, moment)
            return
        # DeepSpeed's setter for full tensors fails on weights with fewer elements than ranks: cut the shard here.
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = torch.cat([flat, flat.new_zeros(size * self.ranks.count - flat.numel())])
        shard = padded[size * self.ranks.index :][:size]
        if moment is None:
            utils.safe_set_local_fp32_param(parameter, shard)
        else:
            utils.safe_set_local_optimizer_state(parameter, shard, moment)


def share_fp32_storage(held: ZeROOptimizer) -> None:
    """Let ZeRO-3 hold fp32 weights once, as the flat partitions that its optimizer updates.

    DeepSpeed intends this (`stage3.py`, `_create_fp32_partitions`, the branch without `converted`), but compares
    ``tensor.device == self.device``, a `torch.device` with a string, which are never equal (DeepSpeed 0.19.8). So it
    makes a copy, and copies it back after each step. Weights in 16 bits do need the fp32 copy.

    Args:
        held: DeepSpeed's ZeRO optimizer.
    """
    for flat, copy in zip(held.fp16_partitioned_groups_flat, held.fp32_partitioned_groups_flat, strict=True):
        if flat is not None and (flat.dtype, flat.device) == (copy.dtype, copy.device):
            copy.data = flat.data  # the inner optimizer holds this tensor object


def _full_copy(whole: Tensor, parameter: nn.Parameter) -> Tensor:
    """Return a CPU copy of a gathered tensor in the full shape of its parameter, which may itself be sharded."""
    return whole.detach().reshape(getattr(parameter, "ds_shape", parameter.shape)).cpu().clone()


def _has_shape_of(value: object, flat: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == flat.shape
