"""Shows the lineage of an artifact as a tree, and the difference of two artifacts as a table."""

from __future__ import annotations

import json
import re
from typing import Any

from rich.text import Text
from rich.tree import Tree

from pipeline.artifacts import Artifact
from pipeline.artifacts.lineage import Change, Difference, Node
from pipeline.artifacts.provenance import adapters_of, base_of
from pipeline.cli.display.artifacts import rows_text
from pipeline.cli.terminal import Column, console, figure, print_line, print_table
from pipeline.errors import counted
from pipeline.plain_data import JsonObject

_DETAILS = ("runtime", "environment", "files")
"""Sections of a difference that are shown only with `--all`."""


def node_data(node: Node) -> JsonObject:
    """Return a tree as plain data for `--json`."""
    manifest = node.artifact.manifest if node.artifact else None
    return {
        "ref": node.artifact.ref if node.artifact else None,
        "name": node.name,
        "kind": node.kind,
        "fingerprint": node.fingerprint,
        "field": node.field,
        "in_store": node.artifact is not None,
        "base": base_of(manifest.lineage) if manifest is not None else None,
        "adapters": [each.record() for each in adapters_of(manifest.lineage)] if manifest is not None else [],
        "data": {
            field: {
                "source": record.source,
                "rows": record.rows,
                "used": manifest.rows_used(record),
                "digest": record.digest,
            }
            for field, record in manifest.data.items()
        }
        if manifest is not None
        else {},
        "repeated": node.repeated,
        "children": [node_data(child) for child in node.children],
    }


def print_tree(node: Node, *, with_data: bool) -> None:
    """Print a tree of ancestors or descendants; ``with_data`` adds the data sources of each artifact."""
    tree = Tree(_label(node), guide_style="dim")
    _grow(tree, node, with_data=with_data)
    out = console()
    if out.is_terminal:
        out.print(tree)
        return
    with out.capture() as captured:
        out.print(tree)
    for line in captured.get().splitlines():
        print(line.rstrip())


def _grow(tree: Tree, node: Node, *, with_data: bool) -> None:
    for child in node.children:
        _grow(tree.add(_label(child)), child, with_data=with_data)
    if with_data and node.artifact is not None and not node.repeated:
        for field, record in node.artifact.manifest.data.items():
            tree.add(
                _text(
                    (f"{field}: ", "dim"),
                    f"{record.source}, {rows_text(node.artifact.manifest, record)} ",
                    (record.digest[:12], "dim"),
                )
            )


_SHA256 = re.compile(r"[0-9a-f]{40,}")


def _label(node: Node) -> Any:
    role = f"{node.field}: " if node.field else ""
    name = node.artifact.ref if node.artifact else node.name
    again = " (shown above)" if node.repeated else ""
    missing = " not in this store" if node.is_missing else ""
    return _text(
        (role, "dim"),
        (name, "bold"),
        f"  {node.kind}  ",
        (_SHA256.sub(lambda match: match[0][:12], node.fingerprint), "dim"),
        (_own_adapters(node), "dim"),
        (again, "dim"),
        (missing, "yellow"),
    )


def _own_adapters(node: Node) -> str:
    """Describe the adapters a stage contributed: the one it trained, or those that a merge folded into the weights."""
    if node.artifact is None:
        return ""
    manifest = node.artifact.manifest
    adapters = adapters_of(manifest.lineage)
    if "dtype" in manifest.lineage:
        count = sum(record.field == "adapters" for record in manifest.inputs)
        added = [f"{one.name} (trained in {one.quantize})" if one.quantize else one.name for one in adapters[-count:]]
        return f"  {' + '.join(added)} folded in, written in {manifest.lineage['dtype']}"
    own = adapters[-1] if adapters and adapters[-1].name == manifest.name else None
    if own is None:
        return ""
    return f"  adapter{f' r {own.r}' if own.r else ''}" + (f" on weights in {own.quantize}" if own.quantize else "")


def _text(*parts: Any) -> Any:
    return Text.assemble(*parts)


def difference_data(difference: Difference) -> JsonObject:
    """Return a difference as plain data for `--json`."""
    return {"same_payload": difference.same_payload, "changes": [vars(change) for change in difference.changes]}


def print_difference(before: Artifact, after: Artifact, difference: Difference, *, everything: bool) -> None:
    """Print the settings and results in which two artifacts differ, then the number of differences not shown."""
    changes = [change for change in difference.changes if not _is_hash(change)]
    shown = [change for change in changes if everything or change.section not in _DETAILS]
    if shown:
        columns = (
            Column("section", style="dim"),
            Column("key", fold=True),
            Column(before.ref, fold=True, style="red"),
            Column(after.ref, fold=True, style="green"),
            Column("change", right=True),
        )
        print_table(columns, [_row(change) for change in shown])
    else:
        print_line(f"{before.ref} and {after.ref} agree in configuration, inputs, data and metrics")
    print_line(f"\npayload: {'the same bytes' if difference.same_payload else 'different bytes'}")
    hidden = len(changes) - len(shown)
    if hidden:
        print_line(f"{counted(hidden, 'more difference')} in files, environment and runtime: --all shows them")


def _is_hash(change: Change) -> bool:
    """Return whether a change only repeats, as a hash, a change that the sections of inputs and data show by name."""
    key = change.key
    return change.section == "config" and (key == "kind" or key.startswith("inputs.") or key.endswith(".digest"))


def _row(change: Change) -> list[str]:
    measured = change.section == "metrics"
    key = change.key.removeprefix("config.") if change.section == "config" else change.key
    return [
        change.section,
        key,
        _shown(change.before, is_measured=measured),
        _shown(change.after, is_measured=measured),
        _delta(change),
    ]


def _shown(value: object, *, is_measured: bool) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return figure(value) if is_measured else f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _delta(change: Change) -> str:
    """Return the signed change of a metric; empty for other changes."""
    numbers = isinstance(change.before, int | float) and isinstance(change.after, int | float)
    if change.section != "metrics" or not numbers:
        return ""
    delta = change.after - change.before
    return f"{'+' if delta > 0 else '-'}{figure(abs(delta))}"
