"""The items and the labels of a `collect` stage: opening them, and what `trueup labels` shows of them.

Needs the libraries of the optional extra `collect`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import typer

from pipeline.artifacts import Store
from pipeline.cli.display import labels as display
from pipeline.cli.display.annotators import statistics
from pipeline.cli.survey import RecipeOptions, survey_of
from pipeline.cli.terminal import print_line
from pipeline.errors import ExitCode, PipelineError, Problem, agreeing, counted, listed
from pipeline.kind.compute import ComputeSettings
from pipeline.machine.disk import writing
from pipeline.plan import Plan, PlannedStage
from pipeline.preferences.anchors import Anchor, ledger_name, note_head, noted_heads
from pipeline.preferences.candidates import ITEMS_VERSION, items_to_label
from pipeline.preferences.dimensions import Dimension
from pipeline.preferences.events import Access, LedgerEvent, Role
from pipeline.preferences.items import Item, is_ranked, items_of
from pipeline.preferences.label_queue import LabelQueue
from pipeline.preferences.labels import Batch, State
from pipeline.preferences.ledger import Ledger
from pipeline.preferences.live.dialogues import Dialogues
from pipeline.preferences.people import plain_name
from pipeline.preferences.probes import ProbePlan, gold_items
from pipeline.preferences.stored_items import stored_items
from pipeline.records.loading import load
from pipeline.records.pair_choice import PairChoice
from pipeline.records.shapes.turns import Turn
from pipeline.stage import Data, ResolvedInput, Rows
from pipeline.stages.collect.config import Config, Live, ledger_url


class PeopleChanges(NamedTuple):
    """Names of people, by what happens to them; and the role of those who are added."""

    add: Sequence[str]
    pause: Sequence[str]
    resume: Sequence[str]
    revoke: Sequence[str]
    role: Role = "annotator"


@dataclass(frozen=True)
class LiveModels:
    """The models that people talk with.

    Attributes:
        models: the checkpoints.
        settings: how people talk with them.
        openings: conversations to begin with.
        compute: device, precision and threads.
        trust_remote_code: whether a model repository may run its own Python.
    """

    models: Sequence[ResolvedInput]
    settings: Live
    openings: Sequence[Sequence[Turn]]
    compute: ComputeSettings
    trust_remote_code: bool


@dataclass(frozen=True)
class Collection:
    """The items and the label ledger of a `collect` stage.

    Attributes:
        name: name of the stage.
        batch: items, and the number of labels each needs.
        ledger: events of the labels.
        guidelines: what annotators are told.
        store: folder of the store, where the heads of the ledger are noted.
        aggregate: how the stage makes one decision of several labels.
        dimensions: what annotators may judge besides.
        live: the models that people talk with; None where they compare pairs of the data.
    """

    name: str
    batch: Batch
    ledger: Ledger
    guidelines: str
    store: Path
    aggregate: str
    dimensions: Sequence[Dimension] = ()
    live: LiveModels | None = None

    def batch_of(self, events: Sequence[LedgerEvent]) -> Batch:
        """Return the batch as it was after these events: the pairs of live dialogues come as people talk."""
        return replace(self.batch, items=Dialogues().take(events).items()) if self.live else self.batch

    def note_head(self) -> None:
        """Note the ledger's head in the store.

        Raises:
            PipelineError: the store cannot be written.
        """
        last = self.ledger.last()
        if last is not None:
            with writing(self.store):
                note_head(self.store, self.ledger.batch, last.number, last.hash, self.ledger.url)


def open_collection(options: RecipeOptions, stage: str, ledger: str | None) -> Collection:
    """Open the items and the ledger of a recipe's `collect` stage.

    Raises:
        PipelineError: the stage does not exist or is of another kind, or its input artifact is not in the store yet.
    """
    plan, artifact_store = survey_of(options).sound()
    planned = {one.spec.name: one for one in plan.stages}
    collections = [name for name, one in planned.items() if isinstance(one.spec.config, Config)]
    if stage not in collections:
        named = f"`{stage}` is a {planned[stage].spec.kind} stage" if stage in planned else f"no stage `{stage}`"
        expected = f"one of {', '.join(collections)}" if collections else "a stage of kind `labels`"
        raise PipelineError(Problem(f"{options.recipe}: {named}", expected))
    config = planned[stage].spec.config
    assert isinstance(config, Config)
    store, guidelines = artifact_store.root, config.guidelines
    label_ledger = Ledger(ledger or ledger_url(config, store), config.batch or stage)
    if config.models:
        live = _live_models(plan, planned[stage], config, options.recipe)
        batch = Batch((), total=config.talk.labels)
        opened = Collection(stage, batch, label_ledger, guidelines, store, config.aggregate, config.dimensions, live)
        return replace(opened, batch=opened.batch_of(label_ledger.events()))
    items = _items(plan, artifact_store, options.recipe, stage, "data")
    if is_ranked(items) and (problems := config.ranking_problems()):
        raise PipelineError(*problems)
    probes = ProbePlan(repeats=config.repeats)
    if config.gold is not None:
        gold, left_out = gold_items(_items(plan, artifact_store, options.recipe, stage, "gold"), items)
        probes = ProbePlan(gold, config.gold_share, config.repeats)
        if left_out:
            are = agreeing(left_out, "is", "are")
            print_line(
                f"{counted(left_out, 'pair')} of `{config.gold}` {are} in the batch too, and no gold", stream=sys.stderr
            )
    batch = Batch(items, config.labels_per_item, config.overlap, probes)
    return Collection(stage, batch, label_ledger, guidelines, store, config.aggregate, config.dimensions)


def _items(plan: Plan, store: Store, recipe: Path, stage: str, name: str) -> Sequence[Item]:
    """Return the pairs or the groups of a stage's data.

    Raises:
        PipelineError: they come from an artifact that is not in the store yet.
    """
    planned = next(one for one in plan.stages if one.spec.name == stage)
    source = plan.recipe.data[planned.data[name].source_name]
    seed, config = planned.spec.seed, planned.spec.config
    assert isinstance(config, Config)

    def read() -> Sequence[Item]:
        rows = _rows(plan, planned, name, recipe)
        if name == "data":
            return items_to_label(rows, config, seed).items
        return items_of([*rows.train, *rows.held_out])[0]

    if source.hub is not None:  # its digest covers its name, not its rows
        return read()
    choice = [getattr(config, field) for field in PairChoice.model_fields]
    made = planned.data[name].input
    digest = store.read(made.artifact).manifest.digest if made is not None and made.artifact is not None else ""
    content = [ITEMS_VERSION, name, planned.payload["data"], digest, source.on_bad_row, seed, choice]
    return stored_items(store.root / ".cache" / "items", content, read)


def _rows(plan: Plan, planned: PlannedStage, field: str, recipe: Path) -> Rows:
    """Return the rows of a data field of a stage, which has not run.

    Raises:
        PipelineError: they are of a stage that has not run.
    """
    item = planned.data[field]
    artifact = item.input.artifact if item.input is not None else None
    if item.input is not None and artifact is None:
        statement = f"the {'answers' if field == 'data' else field} come from `{item.input.name}`, which has not run"
        raise PipelineError(Problem(statement, "", f"trueup run {recipe} --until {item.input.name}"))
    source, shapes = plan.recipe.data[item.source_name], Config.markers(Data)[field].shape
    return load(source, shapes, seed=planned.spec.seed, name=item.source_name, artifact=artifact)


def _live_models(plan: Plan, planned: PlannedStage, config: Config, recipe: Path) -> LiveModels:
    """Return the models that people talk with in a stage, which has not run.

    Raises:
        PipelineError: a model or the openings are of a stage that has not run.
    """
    inputs = planned.inputs["models"]
    missing = [one.name for one in inputs if one.artifact is None and not one.external]
    if missing:
        remedy = f"trueup run {recipe} --until {planned.spec.name}"
        have = agreeing(len(missing), "has", "have")
        raise PipelineError(Problem(f"people talk with {listed(missing)}, which {have} not run", "", remedy))
    models = [
        ResolvedInput(
            ref=one.ref, name=one.name, kind=one.kind, fingerprint=one.fingerprint, path=str(one.artifact or one.ref)
        )
        for one in inputs
    ]
    openings: list[Sequence[Turn]] = []
    if config.openings is not None:
        rows = _rows(plan, planned, "openings", recipe)
        openings = [row["prompt"] for row in (*rows.train, *rows.held_out)]
    compute, trusted = planned.spec.compute.settings, plan.recipe.trust_remote_code
    return LiveModels(models, config.talk, openings, compute, trusted)


def show_labels(collection: Collection, what: str, until: int | None, *, as_json: bool) -> None:
    """Print the status, the agreement, statistics of people or the verification of a collection's labels.

    Args:
        collection: the items and their ledger.
        what: ``status``, ``agreement``, ``stats`` or ``verify``.
        until: number of the last event of the ledger to count; None counts all.
        as_json: whether to print JSON for programs.

    Raises:
        typer.Exit: a label was changed.
    """
    if what == "verify":
        notes = noted_heads(collection.store, collection.ledger.batch, collection.ledger.url)
        notes = replace(notes, anchors=[*notes.anchors, *_heads_of_artifacts(collection)])
        problems = collection.ledger.problems(notes.anchors)
        display.verified(collection.ledger, problems, notes, as_json=as_json)
        if problems:
            raise typer.Exit(int(ExitCode.FAILED))
        return
    _show_state(collection, what, until, as_json=as_json)


def said_until(ledger: Ledger, until: int | None) -> list[LedgerEvent]:
    """Return what was said of labels up to an event, or up to now.

    Raises:
        PipelineError: the event has not happened yet, so that the same command would later say something else.
    """
    events = ledger.said(until)
    last = events[-1].number if events else 0
    if until is not None and last < until:
        raise PipelineError(Problem(f"--until-event {until}: the last event is {last}", f"1 to {last}"))
    return events


def _show_state(collection: Collection, what: str, until: int | None, *, as_json: bool) -> None:
    if collection.live and what == "agreement":
        expected = "a batch of pairs: nobody else sees a person's dialogue"
        remedy = f"`trueup labels stats RECIPE {collection.name}` shows how each person chooses"
        raise PipelineError(Problem("agreement on live dialogues", expected, remedy))
    events = said_until(collection.ledger, until)
    batch, state = collection.batch_of(events), State().take(events)
    if what == "status":
        display.status(batch, state, as_json=as_json)
    elif what == "stats":
        statistics(batch, state, as_json=as_json)
    else:
        display.agreed(batch, state, as_json=as_json)


def _heads_of_artifacts(collection: Collection) -> list[Anchor]:
    """Return the heads of the ledger that the manifests of the stage's artifacts record."""
    own = collection.ledger.batch, ledger_name(collection.ledger.url, collection.store)
    anchors = []
    for artifact in Store(collection.store).artifacts(collection.name):
        noted = artifact.manifest.runtime.get("ran", {}).get("ledger")
        if isinstance(noted, dict) and (noted.get("batch", own[0]), noted.get("ledger", own[1])) == own:
            anchors.append(Anchor(int(noted["event"]), str(noted["head"]), f"the manifest of {artifact.ref}"))
    return anchors


def drop_items(collection: Collection, items: Sequence[str], reason: str, *, stuck: bool) -> None:
    """Take items out of a batch: those named, or all that nobody there can complete.

    Raises:
        PipelineError: an item is not in the batch, none was named, or those that nobody can complete are of live
            dialogues.
    """
    if stuck and collection.live:
        expected = "ids of pairs: any further dialogue gives the labels that are missing"
        raise PipelineError(Problem("--stuck of live dialogues", expected))
    queue = LabelQueue(collection.batch, collection.ledger, hands_out=False)
    known = frozenset(collection.batch.ids)
    noun = collection.batch.noun
    unknown = [item for item in items if item not in known]
    if unknown:
        listing = "export" if collection.live else "status"
        option = "--format raw" if collection.live else "--json"
        expected = f"ids of {noun}s as `trueup labels {listing} RECIPE {collection.name} {option}` lists them"
        raise PipelineError(Problem(f"no {noun} of this batch is {', '.join(unknown)}", expected))
    chosen = [*items, *(one.item for one in queue.stuck() if stuck)]
    if not chosen and not stuck:
        raise PipelineError(Problem(f"no {noun} is named", f"ids of {noun}s, or --stuck"))
    queue.drop(chosen, reason)
    done, wanted = (queue.progress()[key] for key in ("done", "wanted"))
    print_line(f"{counted(len(set(chosen)), noun)} dropped; {done} of {counted(wanted, 'label')}")


def close(collection: Collection, *, reopen: bool) -> None:
    """End a batch with the labels it has, or open it again."""
    queue = LabelQueue(collection.batch, collection.ledger, hands_out=False)
    queue.close(not reopen)
    progress = queue.progress()
    if reopen:
        print_line(f"open again: {progress['done']} of {counted(progress['wanted'], 'label')}")
    else:
        print_line(f"closed with {counted(progress['done'], 'label')}; `trueup run` goes on with them")


def change_people(collection: Collection, changes: PeopleChanges, address: str) -> None:
    """Add people and print their links, pause them, let them go on, or revoke their links; then list all.

    The app that is running takes the change over with the next request.

    Args:
        collection: the items and their ledger.
        changes: who is added, paused, let go on, and whose link is revoked.
        address: what annotators type to reach the app.

    Raises:
        PipelineError: nobody has a name that is to be changed, or the address is none.
    """
    check_url(address)
    queue = LabelQueue(collection.batch, collection.ledger, hands_out=False)
    accesses: dict[Access, Sequence[str]] = {
        "paused": changes.pause, "active": changes.resume, "revoked": changes.revoke
    }  # fmt: skip
    for access, names in accesses.items():
        for name in names:
            queue.set_access(name if name in queue.people() else plain_name(name), access)
    for name in dict.fromkeys(map(plain_name, changes.add)):
        print(f"{name}: {link(address.rstrip('/'), queue.invite(name, changes.role), changes.role)}")
    for name, person in sorted(queue.people().items()):
        print_line(f"{name} ({'lead, ' if person.role == 'lead' else ''}{person.access})")


def check_url(url: str) -> None:
    """Check that a URL is an address that a browser opens.

    Raises:
        PipelineError: it is not.
    """
    try:
        parts = urlsplit(url)
        is_address = bool(parts.hostname) and parts.scheme in ("http", "https") and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or not url.isprintable() or set("?# ") & set(url):
        raise PipelineError(Problem(f"--url {url}", "the whole address, such as https://labels.example.org"))


def link(address: str, token: str, role: Role) -> str:
    """Return the link of a person: browsers do not send what stands after its `#`."""
    return f"{address}/{'lead' if role == 'lead' else ''}#{token}"
