"""Shows the forecast of a plan, as two narrow tables (work, memory) and as data."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TextIO

from pipeline.cli.display.variants import merged
from pipeline.cli.terminal import Column, duration, print_line, print_table
from pipeline.plain_data import JsonObject
from pipeline.preflight.forecast.remedies import advice, gib, remedy
from pipeline.preflight.forecast.stages import Forecast
from pipeline.stage import MODEL_PARALLEL

WORK = ("params", "trained", "format", "tokens", "FLOPs", "time", "cost")
_OPEN = "fp32/bf16"
MEMORY = ("weights", "grads", "optim.", "activ.", "logits", "heap", "buff.", "other", "KV", "peak")


def print_forecasts(needs: Sequence[Forecast], unknown: Sequence[str], stream: TextIO | None = None) -> None:
    """Print the work and memory of pending stages, the assumed device and layout, and the stages that do not fit."""
    out = stream or sys.stdout
    specs = [need.stage.spec for need in needs]
    variants = {spec.name: spec.written_as for spec in specs if spec.is_variant}
    if needs:
        print(file=out)
        stage = Column("stage")
        work = merged([_work(need) for need in needs], variants, count=True)
        print_table([stage, *(Column(t, right=True) for t in WORK)], work, stream=out)
        print(file=out)
        columns = [Column("MiB/process"), *(Column(t, right=True) for t in MEMORY)]
        print_table(columns, merged([_memory(need) for need in needs], variants, count=True), stream=out)
        for need in needs:
            if need.host:
                room = f" of {gib(need.host_room)}" if need.host_room else ", of a size that is not known"
                told = f"{need.stage.spec.name} keeps {gib(need.host)} a process in the machine's memory{room}"
                print_line(f"offloaded: {told}", stream=out)
        for line in dict.fromkeys(_assumed(need) for need in needs):
            print_line(line, stream=out)
        if any(len(need.formats) > 1 for need in needs):
            told = f"{_OPEN}: auto is measured when the stage runs; memory is that of the format with more"
            print_line(told, stream=out)
    for need in needs:
        if not need.fits:
            print_line(f"does not fit: {need.stage.spec.name}; {advice(need)}", stream=out)
    for note in unknown:
        print_line(f"note: {note}", stream=out)


def forecast_data(need: Forecast) -> JsonObject:
    """Return a forecast as plain data for `--json`."""
    return {
        "stage": need.stage.spec.name,
        "device": asdict(need.device),
        "processes": need.processes,
        "zero": need.compute.zero,
        "formats": list(need.formats),
        "parameters": need.shape.parameters,
        "trained": need.trained,
        "tokens": need.tokens,
        "flops": need.flops,
        "hours": need.hours,
        "usd": need.cost,
        "micro_batch": need.micro_batch,
        "longest": need.longest,
        "memory_bytes": asdict(need.memory),
        "host_bytes": need.host,
        "fits": need.fits,
        "remedy": "" if need.fits else remedy(need),
    }


def _work(need: Forecast) -> list[str]:
    seconds = None if need.hours is None else need.hours * 3600
    return [
        need.stage.spec.name,
        short(need.shape.parameters),
        short(need.trained) if need.trained else "-",
        "/".join(need.formats),
        "?" if need.tokens is None else short(need.tokens),
        "?" if need.flops is None else f"{need.flops:.1e}",
        "-" if seconds is None else duration(seconds),
        "-" if need.cost is None else f"${need.cost:,.2f}",
    ]


def _memory(need: Forecast) -> list[str]:
    m = need.memory
    sizes = (m.weights, m.gradients, m.optimizer, m.activations, m.logits, m.heap, m.buffers, m.others, m.cache, m.peak)
    return [need.stage.spec.name, *(f"{size / 2**20:,.0f}" if size else "-" for size in sizes)]


def _assumed(need: Forecast) -> str:
    spread = [f"ZeRO-{need.compute.zero}"] if need.compute.zero else ["FSDP2"] if need.compute.fsdp else []
    for word in MODEL_PARALLEL:
        if getattr(need.compute, word) > 1:
            spread.append(f"{word.replace('_', ' ')} {getattr(need.compute, word)}")
    count = f"{need.processes} × " if need.processes > 1 else ""
    return f"about, for {count}{need.device.name} with {', '.join([gib(need.room), *spread])}; libraries come on top"


def short(number: float) -> str:
    """Format a count as ``1.5B``, ``310M`` or ``64k``."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"
