"""Verbs on human preferences: `collect` opens the labelling app; `labels` shows, exports and verifies the labels."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.app import PEOPLE, verb
from pipeline.cli.options import JsonOption, ProfileOption, RecipeArgument, RecipeStoreOption, SetOption
from pipeline.errors import ExitCode, PipelineError, Problem, counted

if TYPE_CHECKING:
    from pipeline.preferences.labels import Batch
    from pipeline.preferences.ledger import Ledger

StageArgument = Annotated[str, typer.Argument(metavar="STAGE", help="A stage of kind `collect`.")]
LedgerOption = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        envvar="TRUEUP_LEDGER",
        show_envvar=True,
        metavar="URL",
        help="Database of the labels: postgresql+psycopg://… or sqlite:///FILE [default: the stage's; in the store].",
    ),
]
UntilEventOption = Annotated[
    int | None, typer.Option("--until-event", metavar="N", min=1, help="As things stood after event N of the ledger.")
]


@dataclass(frozen=True)
class _Collection:
    """The items and the label ledger of a `collect` stage."""

    name: str
    batch: Batch
    ledger: Ledger
    guidelines: str


@verb(PEOPLE)
def collect(
    recipe: RecipeArgument,
    stage: StageArgument,
    annotators: Annotated[
        str, typer.Option("--annotators", metavar="NAME,NAME", help="Who labels; new ones are given a link.")
    ] = "",
    new_link: Annotated[
        list[str] | None, typer.Option("--new-link", metavar="NAME", help="Replace somebody's link; repeatable.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8700,
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="What people type to reach it, when it is not the above.")
    ] = None,
    ledger: LedgerOption = None,
    override: SetOption = None,
    store: RecipeStoreOption = None,
    profile: ProfileOption = None,
) -> None:
    """Open the labelling app of a stage until Ctrl-C; every annotator has a link of their own."""
    from pipeline.preferences import need

    need("sqlalchemy", "starlette", "uvicorn")
    from pipeline.preferences.label_queue import LabelQueue
    from pipeline.preferences.serving import listen, serve
    from pipeline.terminal import print_line

    collection = _collection(recipe, stage, ledger, override, store, profile)
    queue = LabelQueue(collection.batch, collection.ledger)
    names = [name.strip() for name in annotators.split(",") if name.strip()]
    known = queue.state().tokens
    invited = dict.fromkeys([*(name for name in names if name not in known), *(new_link or ())])
    if not known and not invited:
        raise PipelineError(Problem("nobody is to label", "a name or more", "--annotators ada,grace"))
    listener = listen(host, port)
    address = (url or f"http://{host}:{listener.getsockname()[1]}").rstrip("/")
    done, full = collection.batch.progress(queue.state())
    print(f"{stage}: {done} of {counted(full, 'label')}, {counted(len(collection.batch.items), 'pair')}")
    for name in invited:
        print(f"{name}: {address}/#{queue.invite(name)}")
    if invited:
        print_line("A link is shown once: hand each to its person.")
    for name in known:
        if name not in invited:
            print_line(f"{name} has a link already (--new-link {name} makes another)")
    print_line(f"listening on {address}; Ctrl-C ends it, and no label is lost")
    sys.stdout.flush()
    serve(queue, stage, collection.guidelines, listener)


@verb(PEOPLE)
def labels(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="status, agreement, export or verify.")],
    recipe: RecipeArgument,
    stage: StageArgument,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Of export; JSON Lines.")] = None,
    until: UntilEventOption = None,
    ledger: LedgerOption = None,
    override: SetOption = None,
    store: RecipeStoreOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how far a collection is and how people agree; export its pairs; verify that no label was changed."""
    from pipeline.preferences import need

    verbs = ("status", "agreement", "export", "verify")
    if what not in verbs:
        raise PipelineError(Problem(f"labels {what}", f"one of {', '.join(verbs)}"))
    need("sqlalchemy")
    from pipeline.display import labels as display
    from pipeline.preferences.labels import State

    collection = _collection(recipe, stage, ledger, override, store, profile)
    if what == "verify":
        problems = collection.ledger.problems()
        display.verified(collection.ledger.events(), problems, as_json=as_json)
        if problems:
            raise typer.Exit(int(ExitCode.FAILED))
        return
    state = State().take(collection.ledger.events(until=until))
    if what == "status":
        display.status(collection.batch, state, as_json=as_json)
    elif what == "agreement":
        display.agreed(collection.batch, state, as_json=as_json)
    else:
        display.export(collection.batch, state, out)


def _collection(
    recipe: Path, stage: str, ledger: str | None, override: list[str] | None, store: str | None, profile: str | None
) -> _Collection:
    """Open the items and the ledger of a recipe's `collect` stage.

    Raises:
        PipelineError: the stage does not exist or is of another kind, or its input artifact is not in the store yet.
    """
    from pipeline.cli.recipes import survey_of
    from pipeline.preferences.items import items_of
    from pipeline.preferences.labels import Batch
    from pipeline.preferences.ledger import Ledger
    from pipeline.records.loading import load
    from pipeline.stages.collect import Config, ledger_url

    plan, artifact_store = survey_of(recipe, override, None, None, None, store, profile).sound()
    planned = {one.spec.name: one for one in plan.stages}
    collections = [name for name, one in planned.items() if one.spec.kind == "collect"]
    if stage not in collections:
        named = f"`{stage}` is a {planned[stage].spec.kind} stage" if stage in planned else f"no stage `{stage}`"
        expected = f"one of {', '.join(collections)}" if collections else "a stage of kind `collect`"
        raise PipelineError(Problem(f"{recipe}: {named}", expected))
    config = planned[stage].spec.config
    assert isinstance(config, Config)
    item = planned[stage].data["data"]
    artifact = item.input.artifact if item.input is not None else None
    if item.input is not None and artifact is None:
        statement = f"the answers come from `{item.input.name}`, which has not run"
        raise PipelineError(Problem(statement, "", f"trueup run {recipe} --until {item.input.name}"))
    source = plan.recipe.data[item.source_name]
    rows = load(source, "preference", seed=planned[stage].spec.seed, name=item.source_name, artifact=artifact)
    items, _ = items_of(rows.train + rows.held_out)
    batch = Batch(items, config.labels_per_item, config.overlap)
    label_ledger = Ledger(ledger or ledger_url(config, artifact_store.root), config.batch or stage)
    return _Collection(stage, batch, label_ledger, config.guidelines)
