"""Asks endpoints for all answers of a stage: only what is not cached, on the first rank, while the others wait in step.

Every reply is cached as it comes, so a run that was stopped or killed asks only for what is missing. The result depends
neither on the order in which replies come nor on the number of ranks.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from pipeline.endpoints.answers import AnswerReply, EndpointPass, Wanted, answers_cache, wanted_of, where_of
from pipeline.endpoints.asking import Answered, Budget, FailedCallError, Watch, ask_all
from pipeline.endpoints.cache import ReplyCache
from pipeline.endpoints.completions import Completion
from pipeline.endpoints.connection import connect
from pipeline.errors import ExitCode, PipelineError, Problem, agreeing, counted
from pipeline.parallel.ranks import Ranks
from pipeline.plain_data import JsonObject
from pipeline.stage import StageContext

FAILURES = "errors.jsonl"
"""File with the answers that failed, each with its reason."""


class EndpointAnswer(NamedTuple):
    """An answer of an endpoint.

    Attributes:
        text: text, cut before a stop string, without white space around it.
        tokens: its length in tokens of the server's model.
        finish_reason: why it ends: at an end token, at a stop string, or at the limit of tokens.
        log_probability: sum over its tokens; None if the server gives none.
        seed: seed of its request.
    """

    text: str
    tokens: int
    finish_reason: Literal["eos", "stop", "max_new_tokens"]
    log_probability: float | None
    seed: int


class Failure(NamedTuple):
    """An answer that failed.

    Attributes:
        model: name of the endpoint.
        temperature: sampling temperature.
        sample: number of the answer.
        row: place of the prompt.
        error: why it failed.
    """

    model: str
    temperature: float
    sample: int
    row: int
    error: str


class Answers(NamedTuple):
    """What endpoints answered.

    Attributes:
        by_pass: an answer to every prompt for each pass; None where it failed.
        failures: the answers that failed.
        cached: number of answers that were there before.
    """

    by_pass: list[list[EndpointAnswer | None]]
    failures: list[Failure]
    cached: int


@dataclass(frozen=True)
class Rule:
    """What matters to all endpoints of a stage.

    Attributes:
        places: place of each prompt in the data.
        max_errors: largest share of an endpoint's answers that may fail.
        fewer: what a user does to have fewer calls.
        stop: strings before which a text is cut; they are not sent.
    """

    places: Sequence[int]
    max_errors: float
    fewer: str
    stop: Sequence[str] = ()


@dataclass
class _Outcome:
    """What the first rank tells the others."""

    replies: dict[str, AnswerReply] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    cached: int = 0
    error: tuple[tuple[Problem, ...], ExitCode] | None = None


def ask_endpoints(ctx: StageContext, passes: Sequence[EndpointPass], rule: Rule) -> Answers:
    """Return the answers of endpoints; every rank must call it with the same passes.

    Raises:
        PipelineError: there is more to send than allowed, this machine lacks what it takes, or too many calls failed.
        Interrupted: the run was asked to stop; all replies so far are cached.
    """
    if not passes:
        return Answers([], [], 0)
    ranks = Ranks.current()
    outcome = _Outcome()
    if ranks.is_first:
        try:
            _First(ctx, ranks, outcome, rule).ask(passes)
        except PipelineError as error:
            outcome.error = error.problems, error.exit_code
        ranks.broadcast("done")
    else:
        while ranks.broadcast("") == "wait":
            ctx.stopping()
    outcome = ranks.broadcast(outcome)
    if outcome.error is not None:
        problems, exit_code = outcome.error
        raise PipelineError(*problems, exit_code=exit_code)
    ctx.stop_if_asked()
    failures = [
        Failure(one.name, one.sampling.temperature, one.sampling.sample, place, outcome.failures[request.key])
        for one in passes
        for place, request in zip(rule.places, one.requests, strict=True)
        if request.key in outcome.failures
    ]
    answers = [_answers(one, outcome.replies, rule.stop) for one in passes]
    for name in _greedy(passes, answers):
        remedy = "see its own settings, such as the model's generation_config.json"
        ctx.note(f"{name}: its answers to a prompt are all the same, so the server does not sample ({remedy})")
    return Answers(answers, failures, outcome.cached)


def _greedy(passes: Sequence[EndpointPass], answers: Sequence[Sequence[EndpointAnswer | None]]) -> Iterator[str]:
    """Yield the endpoints that were asked for several samples and gave the same one to every prompt."""
    for name in dict.fromkeys(one.name for one in passes):
        own = [a for one, a in zip(passes, answers, strict=True) if one.name == name and one.sampling.temperature]
        texts = [{answer.text for answer in said if answer is not None} for said in zip(*own, strict=True)]
        if len(own) > 1 and len(texts) > 2 and all(len(some) <= 1 for some in texts):
            yield name


def write_failures(file: Path, failures: Sequence[Failure]) -> None:
    """Write the answers that failed, one JSON object on each line."""
    with file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(one._asdict(), ensure_ascii=False) + "\n" for one in failures)


def cache_folder(ctx: StageContext) -> Path:
    """Return the folder that holds the cache of a stage: its store's, or its own if it samples anew."""
    return ctx.responses.parent if ctx.responses is not None else ctx.work


class _First:
    """Asks the endpoints one after another, on the first rank."""

    def __init__(self, ctx: StageContext, ranks: Ranks, outcome: _Outcome, rule: Rule) -> None:
        self.ctx, self.ranks, self.outcome, self.rule = ctx, ranks, outcome, rule
        self.cache: ReplyCache[AnswerReply] = answers_cache(cache_folder(ctx))
        self.done, self.total = 0, 0
        self.tokens, self.started = 0, time.perf_counter()

    def ask(self, passes: Sequence[EndpointPass]) -> None:
        """Ask; nothing is sent if any endpoint has more to send than allowed.

        Raises:
            PipelineError: see `ask_endpoints`.
        """
        wanted = wanted_of(passes, self.cache, self.rule.fewer)
        over = [one.problem for one in wanted.values() if one.problem is not None]
        if over:
            raise PipelineError(*over)
        self.done = sum(one.forecast.cached for one in wanted.values())
        self.total = sum(one.forecast.calls for one in wanted.values())
        for name, one in wanted.items():
            self.ctx.note(f"{name}: {one.forecast}")
            self.outcome.replies |= one.known
            self.outcome.cached += len(one.known)
            if one.forecast.sent:
                is_stopped = self._ask_one(name, one)
                if is_stopped:
                    return
            self._tell(name, one, [own for own in passes if own.name == name])

    def _ask_one(self, name: str, wanted: Wanted) -> bool:
        """Ask one endpoint for what is not cached; return whether the run was asked to stop."""
        endpoint = wanted.endpoint
        self.ctx.phase(f"asking {name}")
        missing = [request for key, request in wanted.requests.items() if key not in wanted.known]
        budget = Budget(endpoint.max_calls, endpoint.max_tokens_total, where_of(name))
        stopped, most = threading.Event(), self.rule.max_errors * len(wanted.requests)

        def give_up(failures: Mapping[str, str]) -> str:
            is_too_many = len(failures) > most
            return f"more than {self.rule.max_errors:.0%} of the answers had failed (max_errors)" if is_too_many else ""

        watch = Watch(keep=self._keep, progress=self._progress, stopping=self._stopping, give_up=give_up)
        server = connect(endpoint, where_of(name), budget, stopped, _reply_of)
        answered = ask_all(server, missing, endpoint.parallel, stopped, watch)
        self.ctx.report(endpoints={name: {"calls_sent": budget.calls, "cached": len(wanted.known)}})
        self.outcome.replies |= answered.replies
        self.done += len(answered.replies) + len(answered.failures)
        if answered.is_stopped:
            return True
        not_asked = [one.key for one in missing if one.key not in answered.replies and one.key not in answered.failures]
        reasons = answered.failures | dict.fromkeys(not_asked, f"not asked: {answered.gave_up}")
        self.outcome.failures |= reasons
        if reasons and (len(reasons) > most or len(reasons) == len(wanted.requests)):
            raise self._failed(name, wanted, answered, reasons)
        return False

    def _keep(self, replies: Mapping[str, AnswerReply]) -> Mapping[str, str]:
        self.cache.put(replies)
        self.tokens += sum(reply["completion_tokens"] for reply in replies.values())
        return {}

    def _progress(self, done: int, rate: float) -> None:
        seconds = max(time.perf_counter() - self.started, 1e-9)
        metrics = {"tokens_per_s": self.tokens / seconds, "calls_per_s": round(rate, 1)}
        self.ctx.progress(self.done + done, self.total, **metrics)

    def _stopping(self) -> bool:
        self.ranks.broadcast("wait")
        return self.ctx.stopping()

    def _failed(
        self, name: str, wanted: Wanted, answered: Answered[AnswerReply], reasons: Mapping[str, str]
    ) -> PipelineError:
        """Return the error of an endpoint that failed too often, and write all reasons into the work folder."""
        told_in = self.ctx.work / FAILURES
        with told_in.open("w", encoding="utf-8") as out:
            for key, reason in reasons.items():
                row: JsonObject = {"model": name, "messages": wanted.requests[key].messages, "error": reason}
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
        reason, number = Counter(answered.failures.values()).most_common(1)[0]
        asked = counted(len(wanted.requests), "answer")
        statement = f"{name}: {len(reasons):,} of {asked} failed, {number:,} of them because: {reason}"
        if answered.gave_up:
            statement += f". The others were not asked: {answered.gave_up}"
        remedy = f"{told_in} has all reasons; run again: only what failed is asked, the other answers are kept"
        problem = Problem(statement, f"at most {self.rule.max_errors:.0%} (max_errors)", remedy)
        return PipelineError(problem, exit_code=ExitCode.FAILED)

    def _tell(self, name: str, wanted: Wanted, passes: Sequence[EndpointPass]) -> None:
        """Say what failed, and what the server does not give."""
        failed = sum(key in self.outcome.failures for key in wanted.requests)
        if failed:
            are = agreeing(failed, "is", "are")
            self.ctx.note(f"{name}: {counted(failed, 'answer')} failed and {are} left out")
        replies = [self.outcome.replies[key] for key in wanted.requests if key in self.outcome.replies]
        if any(not reply["is_counted"] for reply in replies):
            self.ctx.note(f"{name}: the server counts no tokens; lengths are estimates, a token for every 4 bytes")
        is_asked = any(one.sampling.log_probabilities for one in passes)
        if is_asked and any(reply["text"] and reply["log_probability"] is None for reply in replies):
            self.ctx.note(f"{name}: the server gives no log-probabilities; they are null")


def _reply_of(told: Completion) -> AnswerReply:
    """Return what is kept of a reply.

    Raises:
        FailedCallError: the server withheld the answer.
    """
    if told.finish_reason == "content_filter":
        raise FailedCallError("the server withheld the answer (finish_reason content_filter)")
    return AnswerReply(
        text=told.text,
        finish_reason=told.finish_reason,
        log_probability=sum(token.logprob for token in told.tokens) if told.tokens else None,
        prompt_tokens=told.prompt_tokens,
        completion_tokens=told.completion_tokens,
        is_counted=told.is_counted,
    )


def _answers(one: EndpointPass, replies: Mapping[str, AnswerReply], stop: Sequence[str]) -> list[EndpointAnswer | None]:
    answers: list[EndpointAnswer | None] = []
    for request, seed in zip(one.requests, one.seeds, strict=True):
        reply = replies.get(request.key)
        answers.append(None if reply is None else _answer(reply, seed, one.sampling.max_new_tokens, stop))
    return answers


def _answer(reply: AnswerReply, seed: int, max_new_tokens: int, stop: Sequence[str]) -> EndpointAnswer:
    text, tokens = reply["text"], reply["completion_tokens"]
    is_full = reply["finish_reason"] == "length" or (not reply["finish_reason"] and tokens >= max_new_tokens)
    cuts = [place for mark in stop if (place := text.find(mark)) >= 0]
    reason: Literal["eos", "stop", "max_new_tokens"] = "stop" if cuts else "max_new_tokens" if is_full else "eos"
    text = text[: min(cuts)] if cuts else text
    return EndpointAnswer(text.strip(), tokens, reason, reply["log_probability"], seed)
