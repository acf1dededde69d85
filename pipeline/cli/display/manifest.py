"""Shows all that is known of an artifact: its manifest by section, and the tables of a report."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pipeline.artifacts import Artifact, Manifest
from pipeline.artifacts.provenance import adapters_of, base_of
from pipeline.cli.display.artifacts import labels_of, rows_text
from pipeline.cli.display.evaluations import print_evaluation
from pipeline.cli.terminal import age, console, duration, figure, print_line, shown_path, size
from pipeline.errors import counted
from pipeline.plain_data import JsonView
from pipeline.recipe.schema import Compute

LAYOUT_KEYS = (
    *("processes", "nodes", "zero", "offload", "fsdp"),
    *("pipeline_parallel", "tensor_parallel", "sequence_parallel", "launcher"),
)
"""Keys of `compute` that determine the parallel layout of a stage."""

_LONGEST_VALUE = 100


def print_artifact(artifact: Artifact, tags: Mapping[str, str], *, everything: bool = False) -> None:
    """Print an artifact's manifest by section.

    A report ends with its tables; its settings, metrics and files are printed only with ``everything``.
    """
    manifest = artifact.manifest
    is_report = manifest.makes == "report"
    _section("", _facts(artifact, tags))
    _section("made from", _inputs(manifest))
    _section("weights", weights_facts(manifest))
    _section(
        "data",
        {
            field: f"{record.source}: {rows_text(manifest, record)}, {record.rejected:,} left out, {record.digest[:12]}"
            f" ({', '.join(record.where)})"
            for field, record in manifest.data.items()
        },
    )
    if not is_report or everything:
        _print_details(manifest)
    if is_report:
        print_evaluation(artifact)


def _print_details(manifest: Manifest) -> None:
    _section("configuration", _flat(manifest.config.get("config", manifest.config)))
    _section("how it ran", ran_facts(manifest))
    _section("rows", {key: f"{count:,}" for key, count in manifest.rows.items()})
    _section("metrics", {key: figure(value) for key, value in sorted(manifest.metrics.items())})
    _section("best", {key: figure(value) for key, value in sorted(manifest.best.items())})
    _section("files", {path: size(record.bytes) for path, record in manifest.files.items()})
    _section("environment", _flat(manifest.environment))


def _facts(artifact: Artifact, tags: Mapping[str, str]) -> dict[str, str]:
    manifest = artifact.manifest
    rate = f", {figure(manifest.tokens_per_s)} tokens/s" if manifest.tokens_per_s else ""
    memory = f", {manifest.peak_memory_mib:,.0f} MiB" if manifest.peak_memory_mib else ""
    recipe = str(manifest.recipe.get("name", ""))
    facts = {
        "artifact": artifact.ref,
        "kind": f"{manifest.kind}, version {manifest.kind_version}, makes a {manifest.makes}",
        "fingerprint": manifest.fingerprint,
        "tags": ", ".join(labels_of(manifest, tags)),
        "recipe": f"{recipe} ({manifest.recipe['file']})" if manifest.recipe.get("file") else recipe,
        "seed": str(manifest.seed),
        "created": f"{manifest.created} ({age(manifest.created)})",
        "took": f"{duration(manifest.seconds)}{rate}{memory}",
        "tokens": f"{manifest.tokens:,}" if manifest.tokens else "",
        "size": f"{size(manifest.payload_bytes)} in {counted(len(manifest.files), 'file')}",
        "folder": shown_path(artifact.path),
        "summary": manifest.summary,
    }
    return {key: value for key, value in facts.items() if value}


def weights_facts(manifest: Manifest) -> dict[str, str]:
    """Return the provenance of weights: their base model, then every adapter applied to it, oldest first."""
    if not manifest.lineage:
        return {}
    adapters = adapters_of(manifest.lineage)
    facts = {"base": base_of(manifest.lineage)}
    facts |= {f"adapter {number}": adapter.text for number, adapter in enumerate(adapters, 1)}
    facts |= {} if adapters else {"adapters": "none"}
    facts |= {"written in": str(manifest.lineage["dtype"])} if "dtype" in manifest.lineage else {}
    return facts


def ran_facts(manifest: Manifest) -> dict[str, str]:
    """Return the parallel layout, batch, precision and attention of a run, without the engine's configuration."""
    ran = manifest.runtime.get("ran", {})
    usual = Compute().model_dump()
    asked = {word: manifest.runtime.get(word, usual[word]) for word in LAYOUT_KEYS}
    facts = {word: str(value).lower() for word, value in asked.items() if value != usual[word]}
    seen = ran.get("seen", {})
    facts |= {"engine": str(seen["engine"])} if "engine" in seen else {}
    for word in ("weights", "optimizer"):
        if isinstance(seen.get(word), int | float) and seen[word] < 1:
            facts[f"{word} held"] = f"{seen[word]:.0%} in each process"
    for word in ("batch", "precision", "attention"):
        facts |= {word: str(ran[word])} if word in ran else {}
    facts |= {"why this precision": str(ran["precision_reason"])} if "precision_reason" in ran else {}
    facts |= {"liger": "its kernels"} if ran.get("liger") else {}
    return facts | ({"activations": "computed again"} if seen.get("recomputed") else {})


def _inputs(manifest: Manifest) -> dict[str, str]:
    """Return the inputs by field of the configuration; a field may have several."""
    named: dict[str, list[str]] = {}
    for record in manifest.inputs:
        version = f"@v{record.version}" if record.version else ""
        named.setdefault(record.field, []).append(f"{record.name}{version} ({record.kind})")
    return {field: ", ".join(names) for field, names in named.items()}


def _flat(data: JsonView, prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to dotted keys; long values are truncated."""
    flat: dict[str, str] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            flat[f"{prefix}{key}"] = text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
    return flat


def _section(title: str, facts: Mapping[str, str]) -> None:
    """Print a title and its ``key  value`` lines; print nothing when there are no lines."""
    if not facts:
        return
    if title:
        console().print(f"\n{title}", style="bold")
    indent = "  " if title else ""
    width = min(32, max(len(key) for key in facts))
    for key, value in facts.items():
        head = f"{indent}{key:<{width}}  "
        print_line(f"{head}{value}", indent=" " * len(head))
