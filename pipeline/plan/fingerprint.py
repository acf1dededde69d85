"""Fingerprints: the hash of everything that can change a stage's result.

Owns what a fingerprint includes. Fields marked `Input`, `Data` and `Code` are included as the content they name; fields
marked `Runtime` and a trainer's runtime fields are excluded. Knows nothing of graphs or of the store's layout.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from pipeline.plain_data import JsonObject
from pipeline.plan.model import Payload
from pipeline.recipe import DataSource, StageSpec, find_code
from pipeline.stage import Added, Code, Data, Input, Runtime, kind_of
from pipeline.trainer_fields import TrainFields

_ORIGIN = frozenset({"path", "hub", "revision", "subset", "hub_split", "artifact", "file"})
_PLAIN: TypeAdapter[Any] = TypeAdapter(Any)


def payload(
    spec: StageSpec,
    inputs: Mapping[str, Sequence[str]],
    data: Mapping[str, tuple[DataSource, str]],
    search_dirs: Sequence[Path],
    *,
    trust_remote_code: bool,
) -> Payload:
    """Return the plain data whose hash is a stage's fingerprint.

    Args:
        spec: the stage.
        inputs: field to the fingerprints of its inputs.
        data: field to its data source and the digest of the source's content.
        search_dirs: where user functions are looked up.
        trust_remote_code: the recipe's setting.

    Raises:
        PipelineError: a user function does not exist.
    """
    result: Payload = {
        "kind": spec.kind,
        "kind_version": kind_of(spec.kind).version,
        "config": config_data(spec.config),
        "seed": spec.seed,
        "inputs": {name: list(fingerprints) for name, fingerprints in inputs.items()},
        "data": {name: {"digest": digest, **source_options(source)} for name, (source, digest) in data.items()},
        "code": {},
    }
    for name in spec.config.markers(Code):
        value = getattr(spec.config, name)
        specs = list(value) if isinstance(value, list | tuple) else [value] if value is not None else []
        if specs:
            result["code"][name] = [find_code(text, search_dirs).fingerprint for text in specs]
    if spec.compute.precision != "auto":
        result["precision"] = spec.compute.precision
    if trust_remote_code:
        result["trust_remote_code"] = True
    return result


def digest_of(data: object) -> str:
    """Return the sha256 of the canonical JSON of plain data."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def config_data(config: BaseModel) -> JsonObject:
    """Return the fields of a configuration that can change a result, defaults and nested models included.

    A field marked `Added` is left out at its default.
    """
    if isinstance(config, TrainFields):
        return config.fingerprint_data()
    data = {}
    for name, info in type(config).model_fields.items():
        is_excluded = any(isinstance(item, Input | Data | Code | Runtime) for item in info.metadata)
        is_added = any(isinstance(item, Added) for item in info.metadata)
        value = getattr(config, name)
        if not is_excluded and not (is_added and value == info.get_default(call_default_factory=True)):
            data[name] = _plain(value)
    return data


def source_options(source: DataSource) -> JsonObject:
    """Return the settings of a data source that change its rows; their location is not included."""
    return {name: value for name, value in config_data(source).items() if name not in _ORIGIN}


def _plain(value: object) -> Any:
    if isinstance(value, BaseModel):
        return config_data(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_plain(item) for item in value), key=digest_of)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _PLAIN.dump_python(value, mode="json")
