"""Verbs on human preferences: `collect` opens the labelling app; `labels` shows, exports and verifies the labels.

Owns their options. What they do is in `labelling` and `collection`, which need the optional extra `collect`: without
it, `--help` still works, and the verb names what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import JsonOption, ProfileOption, RecipeArgument, RecipeStoreOption, SetOption
from pipeline.cli.survey import RecipeOptions
from pipeline.errors import PipelineError, Problem, listed
from pipeline.machine.garbage import gc_paused
from pipeline.preferences import need

_SHOWS = frozenset({"until", "as_json"})
LABEL_VERBS: Mapping[str, frozenset[str]] = {
    "status": _SHOWS,
    "agreement": _SHOWS,
    "stats": _SHOWS,
    "export": frozenset({"out", "row_format", "ties", "share", "pseudonyms", "aggregate", "until"}),
    "import": frozenset({"items", "row_format", "person"}),
    "verify": frozenset({"as_json"}),
    "drop": frozenset({"items", "stuck", "reason"}),
    "close": frozenset({"reopen"}),
    "people": frozenset({"add", "lead", "pause", "resume", "revoke", "url"}),
}
"""What `trueup labels` does, and the parameters that it reads beside those of every word."""

_ALWAYS = frozenset({"what", "recipe", "stage", "ledger", "override", "store", "profile"})

AddOption = Annotated[
    list[str] | None,
    typer.Option("--add", metavar="NAME", help="Of people: give them a link, a new one if they have one; repeatable."),
]
PauseOption = Annotated[
    list[str] | None, typer.Option("--pause", metavar="NAME", help="Of people: they may not label for now; repeatable.")
]
ResumeOption = Annotated[
    list[str] | None, typer.Option("--resume", metavar="NAME", help="Of people: they may label again; repeatable.")
]
RevokeOption = Annotated[
    list[str] | None,
    typer.Option("--revoke", metavar="NAME", help="Of people: their link does not work any more; repeatable."),
]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Of export: the file.")]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="Of export and import: preference, unpaired, raw, argilla, label-studio, hh, csv or parquet "
        "[default: preference; an import finds it out].",
    ),
]
TiesOption = Annotated[
    bool, typer.Option("--ties", help="Of export: pairs that nobody's choice decides make rows too, of margin 0.")
]
SplitOption = Annotated[
    float,
    typer.Option(
        "--split",
        metavar="SHARE",
        min=0,
        max=0.99,
        help="Of export: hold this share of the prompts out, in FILE.held-out.",
    ),
]
PseudonymsOption = Annotated[bool, typer.Option("--pseudonyms", help="Of export: other names in place of people's.")]
AggregateOption = Annotated[
    str | None,
    typer.Option(
        "--aggregate",
        metavar="HOW",
        help="Of export: majority or dawid_skene makes one decision of several labels [default: the stage's].",
    ),
]
AsOption = Annotated[str, typer.Option("--as", metavar="NAME", help="Of import: who gave labels that name nobody.")]
WhatArgument = Annotated[str, typer.Argument(metavar="WHAT", help=f"{listed(LABEL_VERBS)}.")]
StuckOption = Annotated[bool, typer.Option("--stuck", help="Of drop: all pairs that the people there cannot complete.")]
UrlOption = Annotated[str, typer.Option("--url", metavar="URL", help="Of people: where the app is reached.")]
ItemsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="ITEM", help="Of drop: ids of pairs. Of import: a file.")
]
StageArgument = Annotated[str, typer.Argument(metavar="STAGE", help="A stage of kind `labels`.")]
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


def collect(
    recipe: RecipeArgument,
    stage: StageArgument,
    annotators: Annotated[
        str, typer.Option("--annotators", metavar="NAME,NAME", help="Who labels; new ones are given a link.")
    ] = "",
    lead: Annotated[
        str,
        typer.Option("--lead", metavar="NAME,NAME", help="Who looks after it: sees figures, adjudicates, invites."),
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
    need("sqlalchemy", "starlette", "uvicorn")
    from pipeline.cli import collection, labelling  # the optional extra `collect` may be missing

    with gc_paused():
        opened = collection.open_collection(RecipeOptions(recipe, override, store, profile), stage, ledger)
    labelling.open_app(opened, {"annotator": annotators, "lead": lead}, new_link or (), host, port, url)


@gc_paused()
def labels(
    context: typer.Context,
    what: WhatArgument,
    recipe: RecipeArgument,
    stage: StageArgument,
    items: ItemsArgument = None,
    out: OutOption = None,
    row_format: FormatOption = None,
    ties: TiesOption = False,
    share: SplitOption = 0.0,
    pseudonyms: PseudonymsOption = False,
    aggregate: AggregateOption = None,
    person: AsOption = "",
    until: UntilEventOption = None,
    stuck: StuckOption = False,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Of drop: why, kept in the ledger.")] = "",
    reopen: Annotated[bool, typer.Option("--reopen", help="Of close: open a closed batch again.")] = False,
    add: AddOption = None,
    lead: Annotated[bool, typer.Option("--lead", help="Of people: those who are added are leads.")] = False,
    pause: PauseOption = None,
    resume: ResumeOption = None,
    revoke: RevokeOption = None,
    url: UrlOption = "http://127.0.0.1:8700",
    ledger: LedgerOption = None,
    override: SetOption = None,
    store: RecipeStoreOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how far a collection is and how people agree; export, import, verify labels; drop pairs, close; people."""
    if what not in LABEL_VERBS:
        raise PipelineError(Problem(f"labels {what}", f"one of {', '.join(LABEL_VERBS)}"))
    _check_options(context, what)
    need("sqlalchemy", "krippendorff")
    from pipeline.cli import collection  # the optional extra `collect` may be missing

    opened = collection.open_collection(RecipeOptions(recipe, override, store, profile), stage, ledger)
    if what in ("export", "import"):
        from pipeline.cli import exchange  # loads pyarrow

    if what == "export":
        options = exchange.ExportOptions(row_format or "preference", out, until, ties, share, pseudonyms, aggregate)
        exchange.export(opened, options)
    elif what == "import":
        exchange.import_labels(opened, items or (), row_format, person)
    elif what == "drop":
        collection.drop_items(opened, items or (), reason, stuck=stuck)
    elif what == "close":
        collection.close(opened, reopen=reopen)
    elif what == "people":
        if lead and not add:
            raise PipelineError(Problem("--lead without --add", "the name of who is added", "--add NAME --lead"))
        names = collection.PeopleChanges(
            add or (), pause or (), resume or (), revoke or (), "lead" if lead else "annotator"
        )
        collection.change_people(opened, names, url)
    else:
        collection.show_labels(opened, what, until, as_json=as_json)


def _check_options(context: typer.Context, what: str) -> None:
    """Check that what was typed is read.

    Raises:
        PipelineError: an option or an argument is of another word.
    """
    known = LABEL_VERBS[what] | _ALWAYS
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if name in known or source is None or source.name != "COMMANDLINE":
            continue
        words = [word for word, own in LABEL_VERBS.items() if name in own]
        typed = parameter.opts[0] if parameter.param_type_name == "option" else " ".join(context.params[name] or ())
        raise PipelineError(Problem(f"labels {what} does not read {typed}", f"labels {' or '.join(words)}"))
