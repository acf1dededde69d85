"""Options that several verbs share, and the choice of the store.

Owns the names and help texts of the shared options. Knows nothing of what a verb does with them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.artifacts import Store
from pipeline.errors import PipelineError, Problem

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

DEFAULT_STORE = "store"
_ANOTHER_STORE = "name another with --store or TRUEUP_STORE"


def complete_recipe(incomplete: str) -> Iterable[str]:
    """Complete the path of a recipe file: suggest YAML files and folders."""
    folder = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    for path in sorted(folder.glob("*")):
        if path.suffix in (".yaml", ".yml") or path.is_dir():
            text = f"{path}/" if path.is_dir() else str(path)
            if text.startswith(incomplete):
                yield text


def complete_ref(context: typer.Context, incomplete: str) -> Iterable[str]:
    """Complete a ref: suggest names of artifacts, and versions after an `@`."""
    chosen = Store(context.params.get("store") or DEFAULT_STORE)
    name, at, _ = incomplete.partition("@")
    if at:
        return [artifact.ref for artifact in chosen.artifacts() if artifact.ref.startswith(incomplete)]
    return [known for known in chosen.names() if known.startswith(name)]


RecipeArgument = Annotated[
    Path, typer.Argument(help="Recipe file (YAML).", metavar="RECIPE", autocompletion=complete_recipe)
]
RefArgument = Annotated[
    str,
    typer.Argument(
        help="Artifact: sft, sft@v3, sft@9f31c0 or sft:champion.", metavar="REF", autocompletion=complete_ref
    ),
]
RefsArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Artifacts; all when none is given.", metavar="REF", autocompletion=complete_ref),
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        help="Checkpoint: a ref of the store, a local folder, or a hub id.", metavar="REF", autocompletion=complete_ref
    ),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="TRUEUP_STORE",
        show_envvar=True,
        metavar="DIR",
        help="Artifacts [default: ./store].",
    ),
]
RecipeStoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="TRUEUP_STORE",
        show_envvar=True,
        metavar="DIR",
        help="Artifacts [default: the recipe's, or ./store].",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. stages.dpo.train.beta=0.05; repeatable."),
]
ProfileOption = Annotated[str | None, typer.Option("--profile", metavar="NAME", help="Profile of the recipe to use.")]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="STAGE", help="Only this stage; what it needs must be in the store. Repeatable."),
]
UntilOption = Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Only this stage and what it needs.")]
ForceOption = Annotated[
    list[str] | None,
    typer.Option("--force", metavar="STAGE", help="Run this stage again, and those that need it. Repeatable."),
]
NodeOption = Annotated[
    int,
    typer.Option(
        "--node-rank",
        envvar="TRUEUP_NODE_RANK",
        show_envvar=True,
        metavar="N",
        min=0,
        help="Which machine of compute.nodes this is: 0 leads, the others run the same command.",
    ),
]
RemoteCodeOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let a hub model or folder run its own Python.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def open_store(given: str | None, recipe: Recipe | None = None) -> Store:
    """Open the store: `--store` or TRUEUP_STORE, else the recipe's, else `./store`; the folder need not exist yet.

    Raises:
        PipelineError: the store is a URL or a file.
    """
    store = Store(given or (recipe.store if recipe is not None else None) or DEFAULT_STORE)
    if store.root.is_file():
        raise PipelineError(Problem(f"store {store.root} is a file", "a folder", _ANOTHER_STORE))
    return store


def existing_store(given: str | None) -> Store:
    """Open a store to read from; the default `./store` need not exist.

    Raises:
        PipelineError: `--store` or TRUEUP_STORE names a folder that does not exist.
    """
    store = open_store(given)
    if given and not store.root.is_dir():
        remedy = f"run `trueup run RECIPE --store {given}` to make it, or {_ANOTHER_STORE}"
        raise PipelineError(Problem(f"store {store.root} does not exist", remedy=remedy))
    return store
