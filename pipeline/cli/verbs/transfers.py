"""Verbs that copy artifacts between stores: push, pull."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipeline.artifacts.remote import pull as receive
from pipeline.artifacts.remote import push as send
from pipeline.cli.display.transfers import Bar, print_transfer
from pipeline.cli.options import JsonOption, RefsArgument, StoreOption, existing_store, open_store
from pipeline.errors import PipelineError, Problem

UrlArgument = Annotated[str, typer.Argument(help="A folder, s3://bucket/path, or any fsspec URL.", metavar="URL")]
AncestorsOption = Annotated[
    bool, typer.Option("--ancestors/--no-ancestors", help="Also what the artifacts were made from.")
]


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
    url, chosen = _url_and_refs([*(refs or ()), url], "trueup push [REF]... URL")
    artifact_store = existing_store(store)
    with Bar(sys.stderr, "pushing") as bar:
        transfer = send(artifact_store, chosen, url, with_ancestors=ancestors, progress=bar.show)
    print_transfer(transfer, f"to {url}", as_json=as_json)


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
