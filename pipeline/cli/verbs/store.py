"""Verbs on the store: ls, verify, tag, gc."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pipeline.artifacts import Artifact, Store
from pipeline.artifacts.lineage import gc as collect
from pipeline.artifacts.refs import resolve, tags, unknown_name, untag
from pipeline.artifacts.refs import tag as set_tag
from pipeline.cli.display.artifacts import artifact_data, artifact_row, artifact_table
from pipeline.cli.options import JsonOption, RefsArgument, StoreOption, YesOption, complete_ref, existing_store
from pipeline.cli.terminal import Column, print_json, print_line, print_table, size
from pipeline.errors import ExitCode, PipelineError, Problem, agreeing, counted
from pipeline.preferences.anchors import newer_answers


def ls(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Only artifacts of this name.", autocompletion=complete_ref)
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List artifacts."""
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
        for artifact in artifacts:
            _tell_newer_labels(artifact_store, artifact)
    else:
        print(f"no artifacts in {artifact_store.root}")


def _tell_newer_labels(artifact_store: Store, artifact: Artifact) -> None:
    """Say when people have labelled on since an artifact was made of their labels."""
    ledger = artifact.manifest.runtime.get("ran", {}).get("ledger")
    if not isinstance(ledger, dict) or artifact != artifact_store.artifacts(artifact.manifest.name)[-1]:
        return
    batch, where = str(ledger.get("batch", artifact.manifest.name)), str(ledger.get("ledger", ""))
    count = newer_answers(artifact_store.root, batch, int(ledger["event"]), where)
    if count is None and where:
        known = "`trueup labels status RECIPE STAGE` says how many labels there are now"
        print_line(f"the labels of {artifact.ref} are in {where}, which is not asked for newer ones; {known}")
    if count:
        name = artifact.manifest.name
        newer = f"newer labels: people answered or took back {counted(count, 'time')} since {artifact.ref} was made"
        print_line(f"{newer}; `trueup run RECIPE --force {name}` makes it again")


def verify(refs: RefsArgument = None, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Hash every file again; exit 1 when one is damaged."""
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


def gc(
    keep_last: Annotated[int, typer.Option("--keep-last", metavar="N", help="Versions to keep of each name.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    yes: YesOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove artifacts that nothing needs any more; asks first.

    Kept are the newest of each name, what has a tag, and all that these were made from. Sampled responses of a model
    go when no artifact is left that is this model or was made from it.
    """
    artifact_store = existing_store(store)
    removal = collect(artifact_store, keep_last=keep_last, dry_run=True)
    nothing = not removal.removed and not removal.leftovers and not removal.responses and not removal.bytes
    if not as_json:
        stay = f"{counted(removal.kept, 'artifact')} {agreeing(removal.kept, 'stays', 'stay')}"
        if nothing:
            print(f"nothing to remove; {stay}")
        else:
            artifact_table([artifact_row(artifact, tags(artifact_store)) for artifact in removal.removed])
            rest = f" and {counted(len(removal.leftovers), 'leftover')} of finished stages" if removal.leftovers else ""
            rest += ", and sampled responses that no artifact needs" if removal.responses else ""
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


def _ask(question: str, otherwise: str) -> None:
    """Ask the user to confirm.

    Raises:
        PipelineError: the answer is no, or standard input is no terminal.
    """
    if not sys.stdin.isatty():
        raise PipelineError(Problem(f"{otherwise}: there is no terminal to ask at", remedy="give --yes to go on"))
    if not typer.confirm(question, err=True):  # standard output carries the result, perhaps as JSON
        raise PipelineError(Problem(otherwise), exit_code=ExitCode.FAILED)
