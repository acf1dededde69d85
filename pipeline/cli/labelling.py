"""The labelling app of a collection: its links, its address, and serving it until Ctrl-C.

Needs the libraries of the optional extra `collect`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.cli.collection import Collection
from pipeline.cli.terminal import print_line
from pipeline.errors import PipelineError, Problem, counted
from pipeline.preferences.label_queue import LabelQueue
from pipeline.preferences.serving import listen, serve


def open_app(
    collection: Collection, annotators: str, new_link: Sequence[str], host: str, port: int, url: str | None
) -> None:
    """Print the links of the annotators and serve the app until Ctrl-C.

    Args:
        collection: the items and their ledger.
        annotators: names, separated by commas; new ones are given a link.
        new_link: names whose link is replaced.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        url: what annotators type to reach the app, when it is not host and port.

    Raises:
        PipelineError: nobody has a link, or the address cannot be listened on.
    """
    queue = LabelQueue(collection.batch, collection.ledger)
    names = [name.strip() for name in annotators.split(",") if name.strip()]
    known = queue.state().tokens
    invited = dict.fromkeys([*(name for name in names if name not in known), *new_link])
    if not known and not invited:
        raise PipelineError(Problem("nobody is to label", "a name or more", "--annotators ada,grace"))
    listener = listen(host, port)
    address = (url or f"http://{host}:{listener.getsockname()[1]}").rstrip("/")
    done, full = collection.batch.progress(queue.state())
    print(f"{collection.name}: {done} of {counted(full, 'label')}, {counted(len(collection.batch.items), 'pair')}")
    for name in invited:
        print(f"{name}: {address}/#{queue.invite(name)}")
    if invited:
        print_line("A link is shown once: hand each to its person.")
    for name in known:
        if name not in invited:
            print_line(f"{name} has a link already (--new-link {name} makes another)")
    print_line(f"listening on {address}; Ctrl-C ends it, and no label is lost")
    sys.stdout.flush()
    serve(queue, collection.name, collection.guidelines, listener)
