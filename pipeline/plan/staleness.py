"""Explains why a stage must run: its differences from the newest artifact of its name.

Owns the comparison and its wording. Knows nothing of how fingerprints are computed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import takewhile

from pipeline.artifacts import Manifest
from pipeline.errors import counted
from pipeline.plan.model import Payload, PlannedData, PlannedInput
from pipeline.stage import VariantsOf, kind_of

_ABSENT = object()
_SHOWN, _BEFORE_CHANGE = 60, 20
"""Characters shown of a value, and how many of them precede the first difference."""


def reasons(
    payload: Payload,
    inputs: Mapping[str, list[PlannedInput]],
    data: Mapping[str, PlannedData],
    before: Manifest | None,
) -> tuple[str, ...]:
    """Return the changes since an artifact, one line each.

    Args:
        payload: the data whose hash is the stage's fingerprint.
        inputs: inputs of the stage, by field.
        data: data sources of the stage, by field.
        before: manifest of the newest artifact of that name, or None.
    """
    if before is None:
        return ("never run",)
    old = before.config
    if payload["kind"] != old.get("kind"):
        return (f"kind {old.get('kind', before.kind)} → {payload['kind']}",)
    changes = list(_inputs(payload, inputs, before))
    told = kind_of(payload["kind"]).config.markers(VariantsOf) if changes else {}  # they follow the inputs
    changes += _data(payload, data, before)
    old_config, config = (
        {key: value for key, value in one.items() if key not in told}
        for one in (old.get("config", {}), payload["config"])
    )
    changes += _values(old_config, config, "")
    changes += _code(old.get("code", {}), payload["code"])
    if payload["kind_version"] != old.get("kind_version"):
        changes.append(
            f"kind {payload['kind']} is now version {payload['kind_version']} (was {old.get('kind_version')})"
        )
    for key, default in (("seed", None), ("precision", "auto"), ("trust_remote_code", False)):
        was, now = old.get(key, default), payload.get(key, default)
        if was != now:
            changes.append(f"{key} {_change(was, now)}")
    return tuple(changes) or ("fingerprints are made in another way now",)


def _inputs(payload: Payload, inputs: Mapping[str, list[PlannedInput]], before: Manifest) -> Iterator[str]:
    """Yield changes of inputs, field by field; within a list they are matched by name."""
    for field_name in dict.fromkeys([*inputs, *(record.field for record in before.inputs)]):
        was = {record.ref: record.fingerprint for record in before.inputs if record.field == field_name}
        now = {item.ref: item.fingerprint for item in inputs.get(field_name, [])}
        gone, new = [ref for ref in was if ref not in now], [ref for ref in now if ref not in was]
        if len(was) == 1 and len(now) == 1 and gone:
            if list(was.values()) != list(now.values()):
                yield f"input {field_name}: {gone[0]} → {new[0]}"
            continue
        same = [ref for ref in now if ref in was]
        yield from (f"input {field_name}: {ref} changed" for ref in same if was[ref] != now[ref])
        yield from (f"input {field_name}: {ref} added" for ref in new)
        yield from (f"input {field_name}: {ref} removed" for ref in gone)
        if not gone and not new and list(was) != list(now) and list(was.values()) != list(now.values()):
            yield f"input {field_name}: another order"


def _data(payload: Payload, data: Mapping[str, PlannedData], before: Manifest) -> Iterator[str]:
    """Yield changes of data sources, field by field: their content, then their settings."""
    old_data = before.config.get("data", {})
    for field_name in dict.fromkeys([*payload["data"], *old_data]):
        was, now = old_data.get(field_name), payload["data"].get(field_name)
        record, planned = before.data.get(field_name), data.get(field_name)
        if was is None or now is None or planned is None:
            yield f"{field_name} {'added' if was is None else 'removed'}"
            continue
        if was["digest"] != now["digest"]:
            if record is not None and record.source != planned.source_name:
                yield f"{field_name}: {record.source} → {planned.source_name}"
            else:
                rows = record.rows if record is not None else 0
                known = rows and planned.rows
                counts = f" ({rows:,} → {counted(planned.rows, 'row')})" if known and rows != planned.rows else ""
                yield f"{_label(field_name, planned)} changed{counts}"
        texts = _values({**was, "digest": ""}, {**now, "digest": ""}, "")
        yield from (f"{_label(field_name, planned)}: {text}" for text in texts)


def _label(field_name: str, planned: PlannedData) -> str:
    return f"{field_name} {planned.source_name}"


def _code(was: Mapping[str, list[str]], now: Mapping[str, list[str]]) -> Iterator[str]:
    """Yield changes of user functions: other functions, or changed source code."""
    for field_name in dict.fromkeys([*was, *now]):
        old, new = was.get(field_name, []), now.get(field_name, [])
        if old == new:
            continue
        old_names, new_names = ([text.partition("@")[0] for text in side] for side in (old, new))
        if old_names != new_names:
            yield f"{field_name}: {', '.join(old_names) or 'none'} → {', '.join(new_names) or 'none'}"
        else:
            pairs = zip(old, new, new_names, strict=True)
            yield f"{field_name}: the source of {', '.join(name for a, b, name in pairs if a != b)} changed"


def _values(was: object, now: object, name: str) -> Iterator[str]:
    """Yield changes of plain data, key by key."""
    if isinstance(was, Mapping) and isinstance(now, Mapping) and (name == "" or (was and now)):
        for key in dict.fromkeys([*now, *was]):
            below = f"{name}.{key}" if name else str(key)
            yield from _values(was.get(key, _ABSENT), now.get(key, _ABSENT), below)
    elif was is _ABSENT:
        yield f"{name} set to {_shown(now)}"
    elif now is _ABSENT:
        yield f"{name} no longer set (was {_shown(was)})"
    elif was != now or type(was) is not type(now):
        yield f"{name} {_change(was, now)}"


def _change(was: object, now: object) -> str:
    """Return ``before → after``; of long values only the part around their first difference."""
    before, after = _text(was), _text(now)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))
    start = max(0, same - _BEFORE_CHANGE) if max(len(before), len(after)) > _SHOWN else 0
    return f"{_cut(before, start)} → {_cut(after, start)}"


def _shown(value: object) -> str:
    """Return a value in one short line."""
    return _cut(_text(value), 0)


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("\n", "\\n")


def _cut(text: str, start: int) -> str:
    """Return a text from ``start`` on, shortened; an ellipsis replaces omitted text."""
    end = start + _SHOWN
    return f"{'…' if start else ''}{text[start:end]}{'…' if len(text) > end else ''}"
