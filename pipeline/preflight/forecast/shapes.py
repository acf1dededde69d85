"""Finds the shape of a stage's model: from the recipe, an artifact, a folder, or the configuration on the hub.

Architectures without a formula are counted on the meta device in a subprocess. Counts are cached in the store by the
digest of the configuration.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from pipeline.artifacts.implicit_reward import REFERENCE_FOLDER, SETTINGS_FILE
from pipeline.estimate.published import published_config
from pipeline.estimate.saved_activations import SavedActivations
from pipeline.estimate.shape import ModelShape, shape_of
from pipeline.machine.disk import keep_if_possible
from pipeline.models.load.quantized_files import TRAINABLE, quantization_of_files
from pipeline.plain_data import JsonObject, JsonView
from pipeline.plan import Plan, PlannedInput, PlannedStage
from pipeline.preflight.forecast.rewards import RewardShape
from pipeline.stage import kind_of

CACHE_FILE = "model-shapes-3.json"
"""The number in the name is raised when the format of the file changes."""
SIZING_S = 120.0
"""Seconds that a count on the meta device may take."""
REACH_S = 3.0
"""Seconds to wait for a connection to the hub."""


class ModelShapes:
    """Shapes of the models of a plan.

    Attributes:
        notes: which shapes are unknown, or not from the model's own files, and why; one line each.
    """

    def __init__(self, plan: Plan, cache: Path) -> None:
        self.stages = {stage.spec.name: stage for stage in plan.stages}
        self.file = cache / CACHE_FILE
        self.notes: list[str] = []
        self._hub: dict[str, JsonObject | None] = {}
        self._failed: set[str] = set()
        try:
            self._known: JsonObject = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}

    def of_stage(self, stage: PlannedStage) -> ModelShape | None:
        """Return the shape of the model a stage trains or creates; None when it is not known."""
        spec = getattr(stage.spec.config, "model", None)
        if isinstance(spec, dict):
            vocab = self._vocab(stage)
            return self.of_config({**spec, "vocab_size": vocab}) if vocab else None
        for field in ("model", "init", "models", "policy"):
            for item in stage.inputs.get(field, []):
                return self.of_input(item)
        return None

    def config_of(self, stage: PlannedStage) -> JsonObject | None:
        """Return the configuration of the model a stage trains, from recipe, folder or hub; None if none has it."""
        spec = getattr(stage.spec.config, "model", None)
        if isinstance(spec, dict):
            return spec
        for item in (item for field in ("model", "init", "policy") for item in stage.inputs.get(field, [])):
            return self.config_of_input(item)
        return None

    def config_of_input(self, item: PlannedInput) -> JsonObject | None:
        """Return the configuration of a model a stage reads, from recipe, folder or hub; None if none has it."""
        return self._config(item) or (self.config_of(self.stages[item.ref]) if item.ref in self.stages else None)

    def quantization_of(self, stage: PlannedStage) -> str:
        """Return ``4bit`` or ``8bit`` if the files of a stage's starting model are quantised so; empty otherwise.

        A stage that trains an adapter does not change its base; one that folds adapters writes full-precision weights.
        """
        for field in ("model", "init", "models"):
            for item in stage.inputs.get(field, []):
                config = self._config(item)
                if config is not None:
                    stored = quantization_of_files(config)
                    return stored if stored in TRAINABLE else ""
                before = self.stages.get(item.ref)
                is_full = before is None or kind_of(before.spec.kind).traits.folds_adapters
                return "" if before is None or is_full else self.quantization_of(before)
        return ""

    def of_input(self, item: PlannedInput) -> ModelShape | None:
        """Return the shape of a model a stage reads."""
        config = self._config(item)
        if config is not None:
            return self.of_config(config)
        return self.of_stage(self.stages[item.ref]) if item.ref in self.stages else None

    def of_reward(self, item: PlannedInput) -> RewardShape | None:
        """Return the shape of a reward model a stage reads; None when one of its models is not known."""
        if item.artifact is None:
            return self.held_by(self.stages[item.ref]) if item.ref in self.stages else _together([self.of_input(item)])
        folders = [item.artifact]
        if (item.artifact / SETTINGS_FILE).is_file():
            folders.append(item.artifact / REFERENCE_FOLDER)
        configs = [_json(folder / "config.json") for folder in folders]
        return _together([None if config is None else self.of_config(config) for config in configs])

    def held_by(self, stage: PlannedStage) -> RewardShape | None:
        """Return the shape of the reward model a stage makes, as of what its artifact holds; None if it makes none."""
        kind = kind_of(stage.spec.kind)
        if kind.makes != "reward":
            return None
        items = [item for field in kind.traits.holds for item in stage.inputs.get(field, [])]
        return _together([self.of_input(item) for item in items] or [self.of_stage(stage)])

    def of_config(self, config: JsonView) -> ModelShape | None:
        """Return the shape a configuration describes: by formula, else counted once and cached."""
        shape = shape_of(config)
        if shape is not None:
            return shape
        text = json.dumps(config, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        if key not in self._known and key not in self._failed:
            self._count(key, text)
        known = self._known.get(key)
        return ModelShape(**{**known, "kept": SavedActivations(**known["kept"])}) if known else None

    def _count(self, key: str, text: str) -> None:
        """Count the model on the meta device; cache the count."""
        kind = json.loads(text).get("model_type") or json.loads(text).get("type")
        if sys.stderr.isatty():
            print(f"counting the parameters of a {kind} model (once) …", file=sys.stderr, flush=True)
        counted = _counted_here(text) if "torch" in sys.modules else _counted_by_a_subprocess(text)
        if counted is None:
            self._failed.add(key)
            self.notes.append(f"a model of type {kind} could not be sized from its configuration")
            return
        self._known[key] = counted
        keep_if_possible(self.file, json.dumps(self._known))

    def _config(self, item: PlannedInput) -> JsonObject | None:
        """Return the configuration of an existing artifact, folder or hub model; None for a pending stage."""
        if item.artifact is not None:
            return _json(item.artifact / "config.json")
        if item.external:
            return self._of_hub(item.ref)
        return None

    def _of_hub(self, ref: str) -> JsonObject | None:
        """Return a hub model's `config.json`: from the local cache, else as shipped with trueup, else downloaded."""
        if ref in self._hub:
            return self._hub[ref]
        from huggingface_hub import hf_hub_download, try_to_load_from_cache  # slow to load; few recipes ask the hub

        name, _, revision = ref.partition("@")
        at, file = revision or None, "config.json"
        config: JsonObject | None = None
        reason = "it does not answer"
        try:
            cached = try_to_load_from_cache(name, file, revision=at)
            if not isinstance(cached, str) and (config := published_config(name)) is not None:
                self.notes.append(f"{name} is sized from the configuration that trueup ships, not from its files")
            elif (
                not isinstance(cached, str) and _hub_answers()
            ):  # without this test huggingface_hub retries for a minute
                cached = hf_hub_download(name, file, revision=at, etag_timeout=3)
            config = _json(Path(cached)) if isinstance(cached, str) else config
        except Exception as error:  # offline, gated or unknown: each library raises its own class
            reason = type(error).__name__
        if config is None:
            self.notes.append(f"{name} could not be sized: its configuration cannot be read from the hub ({reason})")
        self._hub[ref] = config
        return config

    def _vocab(self, stage: PlannedStage) -> int | None:
        """Return the vocabulary size that a new model gets from its tokenizer; None when it is not known."""
        for item in stage.inputs.get("tokenizer", []):
            if item.artifact is not None:
                return _vocab_of_folder(item.artifact)
            if item.ref in self.stages:
                return getattr(self.stages[item.ref].spec.config, "vocab_size", None)
            config = self._of_hub(item.ref) if item.external else None
            return int(config["vocab_size"]) if config and "vocab_size" in config else None
        return None


def _together(models: Sequence[ModelShape | None]) -> RewardShape | None:
    """Return models that score together; None when one of them is not known."""
    known = tuple(model for model in models if model is not None)
    return RewardShape(known) if len(known) == len(models) else None


def _counted_by_a_subprocess(text: str) -> JsonObject | None:
    """Count a model in a process that imports torch, which a plan does without; None if it cannot be counted."""
    line = [sys.executable, "-m", "pipeline.models.sizing"]
    try:
        done = subprocess.run(line, input=text, capture_output=True, text=True, timeout=SIZING_S, check=False)
    except subprocess.TimeoutExpired:
        return None
    return None if done.returncode else dict(json.loads(done.stdout.splitlines()[-1]))


def _counted_here(text: str) -> JsonObject | None:
    """Count a model in this process, whose program has loaded torch already; None if it cannot be counted."""
    from pipeline.models.sizing import shape_on_meta  # loads torch, which a plan does without

    try:
        return asdict(shape_on_meta(json.loads(text)))
    except Exception:  # the model's own code raises anything
        return None


def _vocab_of_folder(folder: Path) -> int | None:
    content = _json(folder / "tokenizer.json")
    if content is None:
        return None
    vocab = content.get("model", {}).get("vocab", {})
    names = set(vocab) if isinstance(vocab, dict) else {item[0] for item in vocab}
    return len(names | {item["content"] for item in content.get("added_tokens", [])})


def _json(file: Path) -> JsonObject | None:
    try:
        content: JsonObject = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content


@functools.cache
def _hub_answers() -> bool:
    """Return whether the hub accepts a connection; assume so behind a proxy."""
    if getproxies():
        return True
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((str(address.hostname), port), timeout=REACH_S).close()
    except OSError:
        return False
    return True
