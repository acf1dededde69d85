"""Resolves the `auto` values that depend on memory, and advises the cheapest change that makes a stage fit.

Changes are tried from the cheapest on. Smaller micro-batches and activation checkpointing cost time and give the same
result; sharding needs more processes; an adapter changes what is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from pipeline.artifacts import Store
from pipeline.errors import Problem
from pipeline.models.load.adapter_config import Adapter
from pipeline.parallel.batch_split import batch_split_problems, divisor_up_to
from pipeline.plan import Plan
from pipeline.preflight.forecast.needs import forecasts
from pipeline.preflight.forecast.stages import Forecast
from pipeline.recipe.schema import Compute

_NOTHING = "no setting that we know makes it fit: a smaller model, or a device with more memory"
_ANOTHER_MACHINE = "where it will run on another machine, name that: compute.hardware"
SHARDED = (2, 4, 8, 16, 32, 64)
Setting = tuple[Compute, Adapter | None, dict[str, int]]
"""Compute settings, adapter, and the changed fields of `train`."""


@dataclass(frozen=True)
class Change:
    """One change of a recipe.

    Attributes:
        words: the change as advice, in recipe keys.
        apply: returns the changed `Setting`.
    """

    words: str
    apply: Callable[[Compute, Adapter | None, dict[str, int]], Setting]


def resolve_auto(plan: Plan, store: Store) -> Plan:
    """Return the plan with `micro_batch: auto` and `activation_checkpointing: auto` resolved so that stages fit.

    A stage that fits keeps its `auto`. Fingerprints do not change, because both are runtime settings.
    """
    needs, _ = forecasts(plan, store)
    by_name = {forecast.stage.spec.name: _with_auto_resolved(forecast) for forecast in needs}
    stages = []
    for stage in plan.stages:
        resolved = by_name.get(stage.spec.name)
        stages.append(stage if resolved is None else replace(stage, spec=replace(stage.spec, compute=resolved.compute)))
    return replace(plan, stages=tuple(stages))


def fitting_problems(plan: Plan, store: Store, *, elsewhere: bool = True) -> Iterator[Problem]:
    """Yield a problem for every stage that does not fit, with its memory by part and the cheapest change that fits.

    Args:
        plan: the planned stages.
        store: holds the artifacts they read, and cached counts.
        elsewhere: whether stages of `launcher: slurm` run on another machine than this one; false inside their job.
    """
    needs, _ = forecasts(plan, store)
    for forecast in needs:
        compute = forecast.stage.spec.compute
        if elsewhere and compute.launcher == "slurm" and compute.hardware is None:
            continue  # the memory of the cluster's nodes is not known here
        resolved = _with_auto_resolved(forecast)
        if resolved.fits:
            continue
        if resolved.fits_host:
            parts = ", ".join(f"{name} {gib(size)}" for name, size in resolved.memory.parts().items())
            word = " or ".join(resolved.formats)
            statement = f"needs about {gib(resolved.memory.peak)} on each process in {word} ({parts})"
            expected = f"at most {gib(resolved.room)} of {resolved.device.name}"
        else:
            statement = f"compute.offload keeps about {gib(resolved.host * compute.processes)} in the machine's memory"
            expected = f"at most {gib(resolved.device.host_gib * 2**30)}, as the machine has"
        where = plan.recipe.where("stages", resolved.stage.spec.name, "compute")
        yield Problem(statement, expected, advice(resolved), where, resolved.stage.spec.name)


def gib(size: float) -> str:
    """Return bytes as ``1.5 GiB`` or ``310 MiB``."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"


def _with_auto_resolved(forecast: Forecast) -> Forecast:
    """Resolve `auto` values by the cheapest change that fits; return the forecast unchanged if it fits or none does."""
    if forecast.fits:
        return forecast
    open_to: list[Change] = []
    support = forecast.facts.kind.traits.compute
    if forecast.compute.micro_batch == "auto":
        open_to += _micro_batches(forecast)
    if forecast.compute.activation_checkpointing == "auto" and support.activation_checkpointing:
        open_to.append(_CHECKPOINTING)
    return next((candidate for _, candidate in _candidates(forecast, open_to) if candidate.fits), forecast)


def remedy(forecast: Forecast) -> str:
    """Return the cheapest change, or combination of up to three, that makes a stage fit; empty if none does."""
    changes = list(_changes(forecast))
    own = [change for change in changes if "processes" not in change.words]
    for pool in (own, changes):  # more devices only where nothing else is enough
        for chosen, candidate in _candidates(forecast, pool):
            if candidate.fits:
                return "cheapest change that fits: " + " and ".join(change.words for change in chosen)
    return ""


def advice(forecast: Forecast) -> str:
    """Return what to do about a stage that does not fit."""
    elsewhere = "" if forecast.compute.hardware is not None else f"; {_ANOTHER_MACHINE}"
    return f"{remedy(forecast) or _NOTHING}{elsewhere}"


def _candidates(forecast: Forecast, changes: list[Change]) -> Iterator[tuple[tuple[Change, ...], Forecast]]:
    """Yield combinations of one to three changes that are a valid recipe, each with its forecast."""
    for count in (1, 2, 3):
        for chosen in combinations(changes, count):
            setting: Setting = (forecast.compute, forecast.adapter, {})
            for change in chosen:
                setting = change.apply(*setting)
            compute, adapter = setting[0], setting[1]
            is_unsharded = compute.zero != 3 and not compute.fsdp and compute.tensor_parallel == 1
            barred = adapter is not None and (
                compute.pipeline_parallel > 1
                or ((adapter.quantize is not None or bool(forecast.facts.stored)) and not is_unsharded)
            )
            facts = forecast.facts.with_train(setting[2])
            if barred or compute.contradictions():
                continue
            support = facts.kind.traits.compute
            if facts.kind.trains and any(batch_split_problems(facts.train, compute.micro_batch, compute.dims, support)):
                continue
            yield chosen, facts.forecast(*setting[:2])


def _on_compute(setting: str, **fields: object) -> Change:
    return Change(setting, lambda compute, adapter, train: (compute.model_copy(update=fields), adapter, train))


def _on_train(setting: str, **fields: int) -> Change:
    return Change(setting, lambda compute, adapter, train: (compute, adapter, {**train, **fields}))


_CHECKPOINTING = _on_compute("compute.activation_checkpointing: true", activation_checkpointing=True)


def _micro_batches(forecast: Forecast) -> Iterator[Change]:
    facts, size = forecast.facts, forecast.micro_batch
    if not facts.kind.trains or not facts.kind.traits.compute.takes_micro_batch:
        return
    share = facts.train.batch_size // forecast.compute.replicas
    while size > 1:
        size = divisor_up_to(share, size // 2)
        yield _on_compute(f"compute.micro_batch: {size}", micro_batch=size)


def _rollouts(forecast: Forecast) -> Iterator[Change]:
    """Yield smaller forward passes of PPO, which give the same result, then smaller rollouts, which do not."""
    if forecast.facts.workload.over != "rollouts":
        return
    train: Any = forecast.facts.train
    budget, batch = train.token_budget, train.rollout_batch
    while budget // 2 >= forecast.longest:
        budget //= 2
        yield _on_train(f"train.token_budget: {budget}", token_budget=budget)
    while batch % 2 == 0 and (batch // 2) % (train.minibatches * forecast.processes) == 0:
        batch //= 2
        yield _on_train(f"train.rollout_batch: {batch}", rollout_batch=batch)


def _changes(forecast: Forecast) -> Iterator[Change]:
    """Yield the changes that apply to a stage, the cheapest first."""
    compute, kind, gpu = forecast.compute, forecast.facts.kind, forecast.device.is_gpu
    if not kind.trains:
        return
    yield from _micro_batches(forecast)
    yield from _rollouts(forecast)
    if compute.activation_checkpointing is not True and kind.traits.compute.activation_checkpointing:
        yield _CHECKPOINTING
    if forecast.processes > 1 and not compute.fsdp:
        for level in range(compute.zero + 1, 4):
            yield _on_compute(f"compute.zero: {level}", zero=level)
    if gpu and compute.offload == "none" and not compute.fsdp:
        setting, level = "compute: {zero: 2, offload: optimizer}", max(2, compute.zero)
        yield _on_compute(setting.replace("2", str(level), 1), zero=level, offload="optimizer")
    if "adapter" in kind.config.model_fields:
        if forecast.adapter is None:
            yield Change("adapter: {r: 16} (LoRA instead of full training)", lambda c, a, t: (c, Adapter(r=16), t))
        if gpu and not forecast.facts.stored and (forecast.adapter is None or forecast.adapter.quantize is None):
            yield Change(
                "adapter: {r: 16, quantize: 4bit}",
                lambda c, a, t: (c, (a or Adapter(r=16)).model_copy(update={"quantize": "4bit"}), t),
            )
    if gpu and not compute.fsdp:
        for count in (n for n in SHARDED if n > compute.processes):
            setting = f"compute: {{processes: {count}, zero: 3}}"
            yield _on_compute(setting, processes=count, zero=3)
    if gpu and compute.offload == "all":
        yield _on_compute("compute.offload: optimizer", offload="optimizer")
    if gpu and compute.offload != "none":
        yield _on_compute("compute.offload: none", offload="none")
    if gpu and not compute.fsdp and compute.offload != "all":
        yield _on_compute("compute: {zero: 3, offload: all}", zero=3, offload="all")
