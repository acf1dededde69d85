"""Finds the folder of the tokenizer a stage will use on this machine, and the models that are not downloaded yet.

Owns the walk from a stage's input through pending stages to a folder. Imports no torch and downloads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypedDict

from huggingface_hub import constants

from pipeline.errors import Problem
from pipeline.models.tokenizer.contract import disagreements, facts_of_folder, growth_note, growth_problem, pair_problem
from pipeline.plan import Plan, PlannedInput, PlannedStage
from pipeline.preflight.forecast.shapes import ModelShapes
from pipeline.stage import ResolvedInput, kind_of

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")

MODELS = ("model", "init", "models", "reward", "watch", "value", "policy", "reference")
"""Input fields that name models, each with its own tokenizer."""


class Reader(TypedDict):
    """A model that reads the answers to prompts: the fields of a `ReaderRequest`.

    Attributes:
        name: name for messages.
        tokenizer: its tokenizer, as a stage's input.
        chat_template: template with which a stage replaces its own; None if no stage does.
    """

    name: str
    tokenizer: ResolvedInput
    chat_template: str | None


class LocalTokenizer(NamedTuple):
    """A tokenizer on this machine.

    Attributes:
        name: name of the stage, folder or hub model it comes from.
        item: the tokenizer as a stage's input.
        folder: folder of its files.
        chat_template: template with which a stage replaces its own; None if no stage does.
    """

    name: str
    item: ResolvedInput
    folder: Path
    chat_template: str | None


def tokenizer_of(plan: Plan, item: PlannedInput, template: str | None) -> LocalTokenizer | None:
    """Return the tokenizer a model will have: its own or its ancestor's; None if it is not on this machine."""
    if item.artifact is not None or item.external:
        folder = item.artifact or hub_folder(item.ref)
        if folder is None or not (folder / "tokenizer.json").is_file():
            return None
        path = str(item.artifact or item.ref)
        resolved = ResolvedInput(ref=item.ref, name=item.name, kind=item.kind, fingerprint=item.fingerprint, path=path)
        return LocalTokenizer(item.name, resolved, folder, template)
    stage = next((one for one in plan.stages if one.spec.name == item.ref), None)
    if stage is None:
        return None
    own = getattr(stage.spec.config, "chat_template", None)
    for field in ("tokenizer", "model", "init", "policy"):
        for below in stage.inputs.get(field, []):
            return tokenizer_of(plan, below, template or own)
    return None


def hub_folder(ref: str) -> Path | None:
    """Return the cache folder of a hub model's tokenizer; None if it is not downloaded."""
    return _cached_folder(ref, "tokenizer.json")


def _is_downloaded(ref: str) -> bool:
    """Return whether any file of a hub model or tokenizer is in this machine's cache."""
    return any(_cached_folder(ref, name) for name in ("config.json", *TOKENIZER_FILES))


def _cached_folder(ref: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache  # slow to load; few recipes name hub models

    name, _, revision = ref.partition("@")
    cached = try_to_load_from_cache(name, file, revision=revision or None)
    return Path(cached).parent if isinstance(cached, str) else None


def readers_of(plan: Plan, stage: PlannedStage, tokenizer: LocalTokenizer) -> list[Reader]:
    """Return the reward models whose tokenizer differs from the policy's."""
    readers: list[Reader] = []
    for item in [*stage.inputs.get("reward", []), *stage.inputs.get("watch", [])]:
        own = tokenizer_of(plan, item, None)
        if own is None:
            continue
        writer_facts, reader_facts = (facts_of_folder(one.folder, one.name) for one in (tokenizer, own))
        if writer_facts is None or reader_facts is None or disagreements(writer_facts, reader_facts):
            name = f"reward model `{item.ref}`"
            readers.append({"name": name, "tokenizer": own.item, "chat_template": own.chat_template})
    return readers


def pair_problems(plan: Plan) -> Iterator[Problem]:
    """Yield a problem for each policy whose reference has another tokenizer, if both are on this machine."""
    for stage in plan.pending:
        held = [item for field in kind_of(stage.spec.kind).traits.holds for item in stage.inputs.get(field, [])]
        tokenizers = [tokenizer_of(plan, item, None) for item in held]
        known = [  # a tokenizer whose chat template a pending stage replaces is compared when the stage runs
            facts_of_folder(one.folder, item.ref)
            for one, item in zip(tokenizers, held, strict=True)
            if one is not None and one.chat_template is None
        ]
        if len(known) != 2 or known[0] is None or known[1] is None:
            continue
        problem = pair_problem(known[0], known[1])
        if problem is not None:
            where = plan.recipe.where("stages", stage.spec.name, "reference")
            yield replace(problem, where=where, stage=stage.spec.name)


def growing_embeddings(plan: Plan, shapes: ModelShapes) -> tuple[list[str], list[Problem]]:
    """Find models whose embedding has fewer rows than their tokenizer has tokens.

    Only models on this machine are checked; a pending stage resizes the embedding of the model it writes.

    Returns:
        A note for each model whose embedding will be resized, and a problem for each that cannot be resized.
    """
    notes, problems = [], []
    for stage in plan.pending:
        compute, adapter = stage.spec.compute, getattr(stage.spec.config, "adapter", None)
        is_whole = compute.zero < 3 and compute.tensor_parallel == 1 and compute.pipeline_parallel == 1
        can_grow = is_whole and getattr(adapter, "quantize", None) is None
        for field in MODELS:
            for item in stage.inputs.get(field, []):
                own = stage.inputs.get("tokenizer", [item])[0]
                tokenizer = tokenizer_of(plan, own, None) if item.artifact is not None or item.external else None
                rows = (shapes.config_of_input(item) or {}).get("vocab_size") if tokenizer is not None else None
                facts = facts_of_folder(tokenizer.folder, tokenizer.name) if tokenizer is not None else None
                if facts is None or not isinstance(rows, int) or facts.entries <= rows:
                    continue
                if can_grow:
                    notes.append(f"stage {stage.spec.name}: {item.name}: {growth_note(rows, facts.entries)}")
                else:
                    where = plan.recipe.where("stages", stage.spec.name, field)
                    problem = growth_problem(rows, facts.entries)
                    problems.append(replace(problem, where=where, stage=stage.spec.name))
    return notes, problems


def content_of(file: Path) -> bytes:
    """Return the content of a tokenizer's file; ``-`` if there is none."""
    return file.read_bytes() if file.is_file() else b"-"


def offline_notes(plan: Plan) -> Iterator[str]:
    """Yield a note for each missing hub model if `HF_HUB_OFFLINE` is set; a cluster's nodes may have it."""
    for stage in plan.pending if constants.HF_HUB_OFFLINE else ():
        for items in stage.inputs.values():
            for item in items:
                if item.external and item.artifact is None and not _is_downloaded(item.ref):
                    name = item.ref.partition("@")[0]
                    yield (
                        f"stage {stage.spec.name}: the model {item.ref} is not on this machine, and HF_HUB_OFFLINE is "
                        f"set; run `hf download {name}` where there is a network, or unset it"
                    )
