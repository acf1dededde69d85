"""The labelling app of a collection: its links, its address, and serving it until Ctrl-C.

Needs the libraries of the optional extra `collect`.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping, Sequence

from pipeline.cli.collection import Collection, LiveModels, check_url, link
from pipeline.cli.terminal import print_line
from pipeline.endpoints.answers import AnswerSampling
from pipeline.errors import PipelineError, Problem, agreeing, counted, listed
from pipeline.machine.garbage import gc_paused
from pipeline.preferences.app import Live
from pipeline.preferences.events import Role
from pipeline.preferences.gate import Hosts
from pipeline.preferences.label_queue import LabelQueue
from pipeline.preferences.labels import Person
from pipeline.preferences.live.answering import Answering
from pipeline.preferences.live.api import LiveApi
from pipeline.preferences.live.conversations import Conversations, Rules
from pipeline.preferences.live.lead import LiveLeadApi
from pipeline.preferences.live.servers import JoinedResponder, ServerResponder
from pipeline.preferences.people import NOUNS, check_name, plain_name
from pipeline.preferences.probes import ProbePlan
from pipeline.preferences.serving import listen, serve
from pipeline.stages.collect.config import ledger_names


def open_app(
    collection: Collection,
    names: Mapping[Role, str],
    new_link: Sequence[str],
    host: str,
    port: int,
    url: str | None,
) -> None:
    """Print the links of people and serve the app until Ctrl-C.

    Args:
        collection: the items and their ledger.
        names: names of a role, separated by commas; new ones are given a link.
        new_link: names whose link is replaced.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        url: what annotators type to reach the app, when it is not host and port.

    Raises:
        PipelineError: there is nothing to label, nobody has a link, a link of nobody is to be replaced, or the address
            cannot be listened on.
    """
    _check_items(collection)
    with gc_paused():
        queue = LabelQueue(collection.batch, collection.ledger, collection.guidelines, collection.dimensions)
    gc.freeze()  # a search for cycles among all earlier labels would delay a reply by tenths of a second
    roles, invited = _invited(collection, queue, names, new_link)
    if url:
        check_url(url)
    listener = listen(host, port)
    live = _live(collection)
    shown_host = f"[{host}]" if ":" in host else host
    if host in ("0.0.0.0", "::") and not url:
        print_line("these links open on this machine only: --url http://ADDRESS:PORT makes some for others")
        shown_host = "127.0.0.1" if host == "0.0.0.0" else "[::1]"
    address = (url or f"http://{shown_host}:{listener.getsockname()[1]}").rstrip("/")
    progress = queue.progress()
    pairs = counted(len(collection.batch.items), collection.batch.noun)
    if collection.live:
        pairs = f"dialogues with {listed(collection.live.names)}"
    print(f"{collection.name}: {progress['done']} of {counted(progress['wanted'], 'label')}, {pairs}")
    for name in invited:
        print(f"{name}: {link(address, queue.invite(name, roles[name]), roles[name])}")
    if invited:
        print_line("A link is shown once: hand each to its person.")
    for name, person in queue.people().items():
        if name not in invited and person.access != "revoked":
            print_line(f"{name} has a link already (--new-link {name} makes another)")
    _tell_probes(collection.batch.probes)
    _warn(queue, collection.name)
    collection.note_head()
    print_line(f"listening on {address}; Ctrl-C ends it, and no label is lost")
    sys.stdout.flush()
    try:
        page = Live(live.answers(), LiveLeadApi(queue, collection.name)) if live else None
        serve(queue, collection.name, collection.guidelines, listener, Hosts.of(host, url), page)
    finally:
        if live:
            live.answering.stop()
        collection.note_head()


def _check_items(collection: Collection) -> None:
    if collection.live is None and not collection.batch.items:
        statement, expected = "the data have nothing to label", "a prompt with two different answers, or three to rank"
        raise PipelineError(Problem(f"stage {collection.name}: {statement}", expected, "bring more answers"))


def _invited(
    collection: Collection, queue: LabelQueue, names: Mapping[Role, str], new_link: Sequence[str]
) -> tuple[dict[str, Role], list[str]]:
    """Return everybody's role, and who is given a link.

    Raises:
        PipelineError: a link of nobody is to be replaced, or nobody has a link.
    """
    known = queue.people()
    roles = _roles(names, known)
    new_link = [name if name in known else plain_name(name) for name in new_link]
    if unknown := [name for name in new_link if name not in known and name not in roles]:
        expected = f"one of {', '.join(known)}" if known else "somebody who has a link"
        remedy = f"--annotators {unknown[0]} makes a first link"
        raise PipelineError(Problem(f"--new-link {unknown[0]}: nobody has this name", expected, remedy))
    roles = {name: person.role for name, person in known.items()} | roles
    if not roles:
        raise PipelineError(Problem("nobody is to label", "a name or more", "--annotators ada,grace"))
    return roles, list(dict.fromkeys([*(name for name in roles if name not in known), *new_link]))


def _roles(names: Mapping[Role, str], known: Mapping[str, Person]) -> dict[str, Role]:
    """Return the role of each name.

    Raises:
        PipelineError: a name cannot be one, is given two roles, or another one than it has.
    """
    roles: dict[str, Role] = {}
    for role, given in names.items():
        for name in filter(None, map(plain_name, given.split(","))):
            check_name(name)
            there = known[name].role if name in known else roles.get(name, role)
            if there != role:
                statement = f"{name} is to be {NOUNS[role]}, and is {NOUNS[there]} already"
                raise PipelineError(Problem(statement, f"another name for {NOUNS[role]}"))
            roles[name] = role
    return roles


def _tell_probes(plan: ProbePlan) -> None:
    """Say which hidden items people will meet, and how far the gold items go."""
    if plan.gold and plan.gold_share:
        enough = f"enough for about {counted(round(len(plan.gold) / plan.gold_share), 'answer')} of each person"
        print_line(f"{counted(len(plan.gold), 'gold pair')}, {plan.gold_share:.1%} of what is shown: {enough}")
    if plan.repeats:
        print_line(f"{plan.repeats:.1%} of what is shown are pairs shown again, with the sides exchanged")


def _live(collection: Collection) -> LiveApi | None:
    """Load the models that people talk with and let them answer; None where people compare pairs of the data."""
    live = collection.live
    if live is None:
        return None
    names = ledger_names(live.models, live.endpoints)
    told = (collection.guidelines, collection.dimensions)
    rules = Rules(live.settings.labels, live.settings.turns, names, live.openings, *told)
    conversations = Conversations(collection.ledger, rules)
    answering = _answering(live, conversations)
    answering.start()
    return LiveApi(conversations, answering)


def _answering(live: LiveModels, conversations: Conversations) -> Answering:
    """Return what answers in dialogues: checkpoints, which are loaded, and models behind servers.

    Raises:
        PipelineError: a checkpoint cannot be loaded, or this machine lacks what it takes to ask a server.
    """
    talk, count = live.settings, len(live.models)
    if live.endpoints:
        servers = ServerResponder(live.endpoints, AnswerSampling(talk.temperature, talk.max_new_tokens, talk.top_p))
        places = range(count, count + len(live.endpoints))
        if not live.models:
            return Answering(conversations, servers, places, servers.close)
    from pipeline.stages.collect.responder import CheckpointResponder  # torch takes seconds, and pairs need none

    trusted = live.trust_remote_code
    checkpoints = CheckpointResponder(live.models, talk, live.compute, print_line, trust_remote_code=trusted)
    if not live.endpoints:
        return Answering(conversations, checkpoints)
    return Answering(conversations, JoinedResponder(checkpoints, count, servers), places, servers.close)


def _warn(queue: LabelQueue, stage: str) -> None:
    """Say which pairs the people there cannot complete, and what to do."""
    stuck = queue.stuck()
    if not stuck:
        return
    active = queue.active()
    most = max(one.missing for one in stuck)
    noun = queue.batch.noun
    lack = f"{counted(len(stuck), noun)} {agreeing(len(stuck), 'lacks', 'lack')} up to {counted(most, 'label')}"
    print_line(
        f"warning: {lack} that {counted(active, 'active person', 'active people')} cannot give: each person labels a "
        f"{noun} once. Add people (`trueup labels people RECIPE {stage} --add NAME`), drop these {noun}s (`labels drop "
        "--stuck`), or end with what is there (`labels close`)"
    )
