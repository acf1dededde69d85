"""What checkpoints said, kept for every stage and recipe of a store that asks the same again.

    <store>/.responses/<model>/<key>.json    one batch of responses, or their log-probabilities

The folder of a model is named by its fingerprint, an entry by the hash of all that decides its content. An entry
appears by one rename, so concurrent runs may share it and a kill leaves no half of one. Every entry can be made
again: deleting the folder costs time only. Knows nothing of models, tokens and sampling.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.artifacts.manifest import Manifest
from pipeline.errors import Problem
from pipeline.machine.disk import disk_problem, keep_if_possible
from pipeline.plain_data import JsonView

_FOLDER = ".responses"
_NAME_LENGTH = 32


def responses_folder(store_root: Path) -> Path:
    """Return the folder of a store's responses."""
    return store_root / _FOLDER


class ResponseCache:
    """Responses of models, by all that decides them.

    Attributes:
        folder: the folder; created by the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, fingerprint: str, facts: JsonView) -> Any:
        """Return what is kept of a model under ``facts``; None if nothing is, or if it cannot be read."""
        key = facts_digest(facts)
        try:
            entry = json.loads(self._file(fingerprint, key).read_bytes())
            return entry["value"] if entry["key"] == key else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def keep(self, fingerprint: str, facts: JsonView, value: object) -> Problem | None:
        """Keep ``value``; return the disk's problem if it cannot be kept.

        Args:
            fingerprint: fingerprint of the model.
            facts: all that decides the value, beside the model.
            value: plain data.
        """
        key = facts_digest(facts)
        file = self._file(fingerprint, key)
        error = keep_if_possible(file, json.dumps({"key": key, "value": value}, separators=(",", ":")))
        return None if error is None else disk_problem(error, self.folder) or Problem(str(error))

    def _file(self, fingerprint: str, key: str) -> Path:
        return self.folder / _folder_name(fingerprint) / f"{key[:_NAME_LENGTH]}.json"


def unneeded_responses(store_root: Path, manifests: Iterable[Manifest]) -> list[Path]:
    """Return the folders of models that none of the artifacts is or was made from, and files of killed writers.

    Args:
        store_root: folder of the store.
        manifests: manifests of the artifacts that stay.
    """
    needed = set()
    for manifest in manifests:
        needed |= {_folder_name(manifest.fingerprint), *(_folder_name(one.fingerprint) for one in manifest.inputs)}
    folders = sorted(folder for folder in responses_folder(store_root).glob("*") if folder.is_dir())
    parts = [file for folder in folders if folder.name in needed for file in sorted(folder.glob(".*"))]
    return [*(folder for folder in folders if folder.name not in needed), *parts]


def _folder_name(fingerprint: str) -> str:
    return hashlib.sha256(fingerprint.encode()).hexdigest()[:_NAME_LENGTH]


def facts_digest(facts: JsonView) -> str:
    """Return the SHA-256 of all that decides a value."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
