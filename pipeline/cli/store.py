"""Verbs on the store: ls, show, lineage, diff, verify, tag, gc, push, pull."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import STORE, verb
from pipeline.cli.options import (
    JsonOption,
    RefArgument,
    RefsArgument,
    StoreOption,
    YesOption,
    complete_ref,
    existing_store,
    open_store,
)
from pipeline.errors import ExitCode, PipelineError, Problem, agreeing, counted

UrlArgument = Annotated[str, typer.Argument(help="A folder, s3://bucket/path, or any fsspec URL.", metavar="URL")]
AncestorsOption = Annotated[
    bool, typer.Option("--ancestors/--no-ancestors", help="Also what the artifacts were made from.")
]


@verb(STORE)
def ls(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Only artifacts of this name.", autocompletion=complete_ref)
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List artifacts."""
    from pipeline.artifacts.refs import tags, unknown_name
    from pipeline.display.artifacts import artifact_data, artifact_row, artifact_table
    from pipeline.terminal import print_json

    artifact_store = existing_store(store)
    if name is not None and ("@" in name or ":" in name):
        only = name.replace("@", ":").partition(":")[0]
        remedy = f"`trueup ls {only}` lists its versions, `trueup show {name}` shows this one"
        raise PipelineError(Problem(f"`{name}` is a ref", "a name", remedy))
    artifacts = artifact_store.artifacts(name)
    if name is not None and not artifacts:
        raise unknown_name(name, name, artifact_store.names(), str(artifact_store.root))
    labels = tags(artifact_store)
    if as_json:
        print_json([artifact_data(artifact, labels) for artifact in artifacts])
    elif artifacts:
        artifact_table([artifact_row(artifact, labels) for artifact in artifacts])
    else:
        print(f"no artifacts in {artifact_store.root}")


@verb(STORE)
def show(
    ref: RefArgument,
    path: Annotated[bool, typer.Option("--path", help="Print only the folder, for scripts.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Of a report also settings and files.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show all that is known of an artifact, or a report's table."""
    from pipeline.artifacts.refs import resolve, tags
    from pipeline.display.artifacts import artifact_data, print_artifact
    from pipeline.terminal import print_json

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


@verb(STORE)
def lineage(
    ref: RefArgument,
    down: Annotated[bool, typer.Option("--down", help="What was made from it instead.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an artifact was made from, down to the data."""
    from pipeline.artifacts.lineage import ancestors, descendants
    from pipeline.artifacts.refs import resolve
    from pipeline.display.lineage import node_data, print_tree
    from pipeline.terminal import print_json

    artifact_store = existing_store(store)
    tree = (descendants if down else ancestors)(artifact_store, resolve(artifact_store, ref))
    if as_json:
        print_json(node_data(tree))
    else:
        print_tree(tree, with_data=not down)


@verb(STORE)
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
    from pipeline.artifacts.lineage import diff as compare_manifests
    from pipeline.artifacts.refs import resolve
    from pipeline.display.lineage import difference_data, print_difference
    from pipeline.terminal import print_json

    artifact_store = existing_store(store)
    first, second = resolve(artifact_store, before), resolve(artifact_store, after)
    difference = compare_manifests(first.manifest, second.manifest)
    if as_json:
        print_json({"before": first.ref, "after": second.ref, **difference_data(difference)})
    else:
        print_difference(first, second, difference, everything=everything)


@verb(STORE)
def verify(refs: RefsArgument = None, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Hash every file again; exit 1 when one is damaged."""
    from pipeline.artifacts.refs import resolve
    from pipeline.terminal import Column, print_json, print_table

    artifact_store = existing_store(store)
    chosen = [resolve(artifact_store, ref) for ref in refs] if refs else artifact_store.artifacts()
    damage = {artifact.ref: artifact_store.verify(artifact) for artifact in chosen}
    if as_json:
        print_json([{"ref": ref, "ok": not bad, "problems": [str(p) for p in bad]} for ref, bad in damage.items()])
    elif not damage:
        print(f"no artifacts in {artifact_store.root}")
    else:
        columns = [Column("artifact", style="bold"), Column("status", style="status"), Column("files", right=True)]
        files = {artifact.ref: f"{len(artifact.manifest.files):,}" for artifact in chosen}
        print_table(columns, [[ref, "damaged" if bad else "ok", files[ref]] for ref, bad in damage.items()])
    if problems := [problem for bad in damage.values() for problem in bad]:
        raise PipelineError(*problems, exit_code=ExitCode.FAILED)


@verb(STORE)
def tag(
    ref: Annotated[
        str | None,
        typer.Argument(metavar="REF", help="Artifact; else tags are listed.", autocompletion=complete_ref),
    ] = None,
    label: Annotated[str | None, typer.Argument(metavar="TAG", help="Tag to give it, e.g. champion.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the tag NAME:TAG instead.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give an artifact a tag, remove one, or list them."""
    from pipeline.artifacts.refs import tag as set_tag
    from pipeline.artifacts.refs import tags, untag
    from pipeline.terminal import Column, print_json, print_table

    artifact_store = existing_store(store)
    if remove and ref is not None:
        full = f"{ref.partition('@')[0]}:{label}" if label else ref
        untag(artifact_store, full)
        if as_json:
            print_json({"tag": full, "ref": None})
        else:
            print(f"removed {full}")
    elif ref is not None and label is not None:
        artifact = set_tag(artifact_store, ref, label)
        full = f"{artifact.manifest.name}:{label}"
        if as_json:
            print_json({"tag": full, "ref": artifact.ref})
        else:
            print(f"{full} is {artifact.ref}")
    elif ref is not None or remove:
        remedy = "trueup tag --remove NAME:TAG" if remove else f"trueup tag {ref} TAG"
        raise PipelineError(Problem("no tag given" if ref else "no artifact given", remedy, "`trueup tag` lists tags"))
    else:
        known = {artifact.manifest.key: artifact.ref for artifact in artifact_store.artifacts()}
        rows = [
            [full, known.get((full.partition(":")[0], to), "not here")]
            for full, to in sorted(tags(artifact_store).items())
        ]
        if as_json:
            print_json([{"tag": full, "ref": to} for full, to in rows])
        elif rows:
            print_table([Column("tag", style="bold"), Column("artifact")], rows)
        else:
            print(f"no tags in {artifact_store.root}")


@verb(STORE)
def gc(
    keep_last: Annotated[int, typer.Option("--keep-last", metavar="N", help="Versions to keep of each name.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    yes: YesOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove artifacts that nothing needs any more; asks first.

    Kept are the newest of each name, what has a tag, and all that these were made from.
    """
    from pipeline.artifacts.lineage import gc as collect
    from pipeline.artifacts.refs import tags
    from pipeline.display.artifacts import artifact_row, artifact_table
    from pipeline.terminal import print_json, size

    artifact_store = existing_store(store)
    removal = collect(artifact_store, keep_last=keep_last, dry_run=True)
    nothing = not removal.removed and not removal.leftovers and not removal.bytes
    if not as_json:
        stay = f"{counted(removal.kept, 'artifact')} {agreeing(removal.kept, 'stays', 'stay')}"
        if nothing:
            print(f"nothing to remove; {stay}")
        else:
            artifact_table([artifact_row(artifact, tags(artifact_store)) for artifact in removal.removed])
            rest = f" and {counted(len(removal.leftovers), 'leftover')} of finished stages" if removal.leftovers else ""
            print(f"\n{counted(len(removal.removed), 'artifact')}{rest}, {size(removal.bytes)}; {stay}")
    removes = not dry_run and not nothing
    if removes:
        if not yes:
            _ask(f"remove {size(removal.bytes)}?", "nothing was removed")
        removal = collect(artifact_store, keep_last=keep_last)
    if as_json:
        refs = [artifact.ref for artifact in removal.removed]
        print_json({"removed": refs, "kept": removal.kept, "bytes": removal.bytes, "dry_run": not removes})
    elif removes:
        print(f"removed, {size(removal.bytes)} freed")
    elif not nothing:
        print("nothing was removed: dry run")


@verb(STORE)
def push(
    refs: RefsArgument = None,
    *,
    url: UrlArgument,
    ancestors: AncestorsOption = True,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy artifacts, and what they were made from, elsewhere.

    A transfer that was cut off goes on where it was. Every file is hashed at its destination.
    """
    from pipeline.artifacts.remote import push as send
    from pipeline.display.transfers import Bar, print_transfer

    url, chosen = _url_and_refs([*(refs or ()), url], "trueup push [REF]... URL")
    artifact_store = existing_store(store)
    with Bar(sys.stderr, "pushing") as bar:
        transfer = send(artifact_store, chosen, url, with_ancestors=ancestors, progress=bar.show)
    print_transfer(transfer, f"to {url}", as_json=as_json)


@verb(STORE)
def pull(
    url: UrlArgument,
    refs: RefsArgument = None,
    ancestors: AncestorsOption = True,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy artifacts from elsewhere into the store.

    A transfer that was cut off goes on where it was. Every file is hashed on arrival.
    """
    from pipeline.artifacts.remote import pull as receive
    from pipeline.display.transfers import Bar, print_transfer

    url, chosen = _url_and_refs([url, *(refs or ())], "trueup pull URL [REF]...")
    artifact_store = open_store(store)
    with Bar(sys.stderr, "pulling") as bar:
        transfer = receive(url, chosen, artifact_store, with_ancestors=ancestors, progress=bar.show)
    print_transfer(transfer, f"from {url}", as_json=as_json)


def _url_and_refs(given: Sequence[str], usage: str) -> tuple[str, list[str]]:
    """Separate the URL from the refs, in any order: a ref has no slash and is not an existing folder.

    Raises:
        PipelineError: there is no URL, or more than one.
    """
    urls = [text for text in given if "/" in text or text in (".", "..", "~")]
    urls = urls or [text for text in given if Path(text).is_dir()]
    if len(urls) != 1:
        statement = f"{' and '.join(urls)} are both URLs" if urls else f"there is no URL in `{' '.join(given)}`"
        remedy = f"{usage}, where URL is s3://bucket/path, any fsspec URL, or a folder such as ./{given[-1]}"
        raise PipelineError(Problem(statement, remedy=f"write {remedy}" if not urls else f"name one: {usage}"))
    return urls[0], [text for text in given if text != urls[0]]


def _ask(question: str, otherwise: str) -> None:
    """Ask the user to confirm.

    Raises:
        PipelineError: the answer is no, or standard input is no terminal.
    """
    if not sys.stdin.isatty():
        raise PipelineError(Problem(f"{otherwise}: there is no terminal to ask at", remedy="give --yes to go on"))
    if not typer.confirm(question, err=True):  # standard output carries the result, perhaps as JSON
        raise PipelineError(Problem(otherwise), exit_code=ExitCode.FAILED)
