"""The model card: the README.md inside every model artifact.

Says only what follows from the fingerprint (configuration, seed, inputs, rows, results), never when or where it ran,
so that the same run gives the same bytes. Pure text in, text out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.artifacts.manifest import InputRecord, Manifest
from pipeline.artifacts.provenance import adapters_of, base_of

_TIMED = re.compile(r"(seconds|runtime|_s|per_second|_mib|memory)$")
_PURPOSE = {
    "model": "A causal language model",
    "reward": "A reward model: it gives a conversation one number, higher is better",
}


def card(manifest: Manifest, ancestors: Sequence[Manifest], files: Iterable[str]) -> str:
    """Return the Markdown card of a model.

    Args:
        manifest: of the model.
        ancestors: manifests of what it was made from, directly or not, nearest first.
        files: paths of its payload.
    """
    sections = [
        f"# {manifest.name}\n",
        f"{_PURPOSE.get(manifest.makes, 'An artifact')}, made by trueup's `{manifest.kind}` stage"
        f" (fingerprint `{manifest.short}`, seed {manifest.seed}).\n",
        _lineage(manifest, ancestors),
        _data(manifest),
        _metrics(manifest),
        _usage(manifest, set(files)),
        f"## Configuration\n\n```json\n{json.dumps(_plain(manifest.config), indent=2, sort_keys=True)}\n```\n",
    ]
    return "\n".join(section for section in sections if section)


def _lineage(manifest: Manifest, ancestors: Sequence[Manifest]) -> str:
    if not manifest.parents:
        return "## Lineage\n\nTrained from nothing: it has no parent.\n"
    lines = ["## Lineage\n"]
    lines += [f"- `{record.field}`: {_parent(record)}" for record in manifest.inputs]
    lines += [
        f"- further back: `{item.name}` (`{item.kind}`, fingerprint `{item.short}`)"
        for item in ancestors
        if item.key not in {record.key for record in manifest.parents}
    ]
    if manifest.lineage.get("base_name"):
        lines.append(f"- base of the weights: {base_of(manifest.lineage)}")
        lines += [f"- adapter {n}: {each.text}" for n, each in enumerate(adapters_of(manifest.lineage), 1)]
    return "\n".join(lines) + "\n"


def _parent(record: InputRecord) -> str:
    if record.key is None:
        return f"`{record.name}` (from outside this store: `{record.fingerprint}`)"
    return f"`{record.name}` (`{record.kind}`, fingerprint `{record.fingerprint[:12]}`)"


def _data(manifest: Manifest) -> str:
    if not manifest.data:
        return ""
    lines = ["## Data\n", "| field | rows | left out | digest |", "|---|---:|---:|---|"]
    lines += [
        f"| {field} | {record.rows:,} | {record.rejected:,} | `{record.digest[:12]}` |"
        for field, record in manifest.data.items()
    ]
    return "\n".join(lines) + "\n"


def _metrics(manifest: Manifest) -> str:
    shown = {key: value for key, value in manifest.metrics.items() if not _TIMED.search(key)}
    if not shown:
        return ""
    lines = ["## Results\n", "| metric | value |", "|---|---:|"]
    lines += [f"| {key} | {value:.6g} |" for key, value in sorted(shown.items())]
    return "\n".join(lines) + "\n"


def _usage(manifest: Manifest, files: set[str]) -> str:
    if "config.json" not in files:
        return ""
    loader = "AutoModelForSequenceClassification" if manifest.makes == "reward" else "AutoModelForCausalLM"
    text = (
        "## How to use\n\n```python\n"
        f"from transformers import {loader}, AutoTokenizer\n\n"
        'path = "."  # this folder\n'
        f"model = {loader}.from_pretrained(path)\n"
        "tokenizer = AutoTokenizer.from_pretrained(path)\n```\n"
    )
    if manifest.makes == "model":
        text += f"\nOr talk to it: `trueup chat {manifest.name}@{manifest.short}`.\n"
    if "adapter/adapter_config.json" in files:
        text += "\nThe weights here are merged; the LoRA adapter alone is in `adapter/`.\n"
    return text


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON data."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)
