"""Verdicts of a server: asks what the store's cache does not have, keeps what is new, and says what failed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.endpoints.asking import Answered, Budget, Watch, ask_all
from pipeline.endpoints.cache import ReplyCache
from pipeline.endpoints.connection import connect
from pipeline.endpoints.forecast import cap_problem
from pipeline.endpoints.requests import ChatRequest
from pipeline.errors import ExitCode, PipelineError, Problem, counted
from pipeline.evaluation.judges.endpoint import FEWER, WHERE, Asking, Endpoint, asking_of, cache_of
from pipeline.evaluation.judges.measures import JudgedPair
from pipeline.evaluation.judges.pairs import Pair
from pipeline.evaluation.judges.prompting import weights_of
from pipeline.evaluation.judges.report import Spent
from pipeline.evaluation.judges.verdicts import NoVerdictError, Reply, joined, read_verdict, reply_of
from pipeline.stage import StageContext

UNREADABLE = "no verdict in the reply"
"""Beginning of the reason of a reply without a verdict."""


class Verdicts(NamedTuple):
    """What a server says of pairs.

    Attributes:
        judged: the pairs, in their order.
        spent: what the verdicts cost, whenever they were asked for.
        cached: replies that the cache had.
        calls: calls of this run, repeated attempts included.
        gave_up: why calls were left out; empty if none was.
    """

    judged: list[JudgedPair]
    spent: Spent
    cached: int
    calls: int
    gave_up: str


def judge_by_calls(ctx: StageContext, endpoint: Endpoint, pairs: Sequence[Pair], max_errors: float) -> Verdicts:
    """Ask a server for the verdicts in both orders that the cache does not have.

    Raises:
        PipelineError: there are more calls or tokens to send than allowed, or this machine lacks what it takes.
        Interrupted: the run was asked to stop; all replies so far are in the cache.
    """
    store = ctx.work.parents[2]
    asking = asking_of(endpoint, pairs, store)
    over = cap_problem(endpoint, WHERE, asking.forecast, FEWER)
    if over is not None:
        raise PipelineError(over)
    ctx.note(str(asking.forecast))
    cache = cache_of(store)
    unique = {request.key: request for both in asking.requests.values() for request in both}
    known = cache.known(list(unique))
    missing = [request for key, request in unique.items() if key not in known]
    budget = Budget(endpoint.max_calls, endpoint.max_tokens_total)
    answered = _ask(ctx, endpoint, _Round(asking, missing, budget, max_errors), cache) if missing else Answered[Reply]()
    if answered.is_stopped:
        ctx.stop_if_asked()
    replies = {**known, **answered.replies}
    not_asked = [key for key in unique if key not in replies and key not in answered.failures]
    answered.failures |= dict.fromkeys(not_asked, f"not asked: {answered.gave_up}")
    judged = [_judged(endpoint, pair, asking.requests.get(i), replies, answered) for i, pair in enumerate(pairs)]
    tokens = sum(reply["prompt_tokens"] + reply["completion_tokens"] for reply in replies.values())
    return Verdicts(judged, Spent(len(replies), tokens), len(known), budget.calls, answered.gave_up)


class _Round(NamedTuple):
    asking: Asking
    missing: list[ChatRequest]
    budget: Budget
    max_errors: float


def _ask(ctx: StageContext, endpoint: Endpoint, round_: _Round, cache: ReplyCache[Reply]) -> Answered[Reply]:
    """Send requests; replies with a verdict go into the cache at once."""
    ctx.phase(f"asking {endpoint.model}")
    weights, total = weights_of(endpoint.rubric), len(round_.missing)
    of_pair = {request.key: i for i, both in round_.asking.requests.items() for request in both}

    def keep(replies: Mapping[str, Reply]) -> Mapping[str, str]:
        useless = {key: reason for key, reply in replies.items() if (reason := _unreadable(reply, weights))}
        cache.put({key: reply for key, reply in replies.items() if key not in useless})
        return useless

    def give_up(failures: Mapping[str, str]) -> str:
        failed = len({of_pair[key] for key in failures})
        if failed <= round_.max_errors * len(round_.asking.requests):
            return ""
        return f"more than {round_.max_errors:.0%} of the pairs had failed (max_errors)"

    stopped = threading.Event()
    watch = Watch(
        keep=keep,
        progress=lambda done, rate: ctx.progress(done, total, calls_per_s=round(rate, 1)),
        stopping=ctx.stopping,
        give_up=give_up,
    )
    server = connect(endpoint, WHERE, round_.budget, stopped, reply_of)
    return ask_all(server, round_.missing, endpoint.parallel, stopped, watch)


def _unreadable(reply: Reply, weights: Mapping[str, float]) -> str:
    try:
        read_verdict(reply, weights)
    except NoVerdictError as error:
        return f"{UNREADABLE}: {error}"
    return ""


def _judged(
    endpoint: Endpoint,
    pair: Pair,
    requests: tuple[ChatRequest, ChatRequest] | None,
    replies: Mapping[str, Reply],
    answered: Answered[Reply],
) -> JudgedPair:
    """Return what becomes of a pair."""
    if requests is None:
        return JudgedPair(pair, "equal")
    weights, keys = weights_of(endpoint.rubric), [request.key for request in requests]
    straight, swapped = (read_verdict(replies[key], weights) if key in replies else None for key in keys)
    if straight is not None and swapped is not None:
        outcome, probability = joined(straight, swapped)
        return JudgedPair(pair, outcome, probability, (straight, swapped))
    error = "; ".join(dict.fromkeys(answered.failures[key] for key in keys if key not in replies))
    unreadable = {i: answered.useless[key]["text"] for i, key in enumerate(keys) if key in answered.useless}
    return JudgedPair(pair, "error", None, (straight, swapped), error=error, unreadable=unreadable)


def failure_of(verdicts: Verdicts, max_errors: float, told_in: Path) -> PipelineError | None:
    """Return the error of a judge that failed too often; None if it did not.

    Args:
        verdicts: its verdicts.
        max_errors: largest share of asked pairs that may fail.
        told_in: file with the reason of each.
    """
    asked = [one for one in verdicts.judged if one.outcome != "equal"]
    failed = [one for one in asked if one.outcome == "error"]
    if not failed or (len(failed) < len(asked) and len(failed) <= max_errors * len(asked)):
        return None
    reasons = Counter(one.error for one in failed if not one.error.startswith("not asked")) or Counter(
        one.error for one in failed
    )
    reason, number = reasons.most_common(1)[0]
    statement = (
        f"{len(failed):,} of {counted(len(asked), 'pair')} have no verdict, {number:,} of them because: {reason}"
    )
    if verdicts.gave_up:
        statement += f". The others were not asked: {verdicts.gave_up}"
    remedy = f"{told_in} has all reasons; run again: only what failed is asked, the other verdicts are kept"
    expected = f"at most {max_errors:.0%} (max_errors)"
    return PipelineError(Problem(statement, expected, remedy), exit_code=ExitCode.FAILED)
