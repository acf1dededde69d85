"""Verbs that show artifacts: show, lineage, diff."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.artifacts.lineage import ancestors, descendants
from pipeline.artifacts.lineage import diff as compare_manifests
from pipeline.artifacts.refs import resolve, tags
from pipeline.cli.display.artifacts import artifact_data
from pipeline.cli.display.lineage import difference_data, node_data, print_difference, print_tree
from pipeline.cli.display.manifest import print_artifact
from pipeline.cli.options import JsonOption, RefArgument, StoreOption, complete_ref, existing_store
from pipeline.cli.terminal import print_json


def show(
    ref: RefArgument,
    path: Annotated[bool, typer.Option("--path", help="Print only the folder, for scripts.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Of a report also settings and files.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show all that is known of an artifact, or a report's table."""
    artifact_store = existing_store(store)
    artifact = resolve(artifact_store, ref)
    if path and not as_json:  # the JSON also contains the path
        print(artifact.path)
    elif as_json:
        print_json(
            {**artifact_data(artifact, tags(artifact_store)), "manifest": artifact.manifest.model_dump(mode="json")}
        )
    else:
        print_artifact(artifact, tags(artifact_store), everything=everything)


def lineage(
    ref: RefArgument,
    down: Annotated[bool, typer.Option("--down", help="What was made from it instead.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an artifact was made from, down to the data."""
    artifact_store = existing_store(store)
    tree = (descendants if down else ancestors)(artifact_store, resolve(artifact_store, ref))
    if as_json:
        print_json(node_data(tree))
    else:
        print_tree(tree, with_data=not down)


def diff(
    before: Annotated[
        str, typer.Argument(metavar="BEFORE", help="An artifact, e.g. dpo@v1.", autocompletion=complete_ref)
    ],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="Another, e.g. dpo@v2.", autocompletion=complete_ref)],
    everything: Annotated[bool, typer.Option("--all", help="Also hashes of files, environment and runtime.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how two artifacts differ in settings, data and results."""
    artifact_store = existing_store(store)
    first, second = resolve(artifact_store, before), resolve(artifact_store, after)
    difference = compare_manifests(first.manifest, second.manifest)
    if as_json:
        print_json({"before": first.ref, "after": second.ref, **difference_data(difference)})
    else:
        print_difference(first, second, difference, everything=everything)
