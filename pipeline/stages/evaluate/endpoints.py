"""The answers of models behind servers, as those of the checkpoints that they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.endpoints.answering import FAILURES, EndpointAnswer, Failure, Rule, ask_endpoints, write_failures
from pipeline.endpoints.answers import EndpointPass
from pipeline.errors import PipelineError, Problem, agreeing, counted, listed
from pipeline.evaluation.prompts import Asked
from pipeline.stage import StageContext
from pipeline.stages.evaluate.answers import Sampled
from pipeline.stages.evaluate.config import FEWER, Config, endpoint_passes


@dataclass(frozen=True)
class Told:
    """What the endpoints answered.

    Attributes:
        answers: an answer to every prompt, by name in the report; None where it failed.
        passes: what was asked, by the same names.
        variants: names of the baseline with another decoding.
        failures: the answers that failed.
        cached: number of answers that were there before.
    """

    answers: dict[str, list[EndpointAnswer | None]]
    passes: dict[str, EndpointPass]
    variants: frozenset[str]
    failures: list[Failure]
    cached: int


def ask_all(ctx: StageContext, config: Config, asked: Asked) -> Told:
    """Ask every endpoint every prompt; every rank must call it.

    Raises:
        PipelineError: there is more to send than allowed, this machine lacks what it takes, or too many calls failed.
        Interrupted: the run was asked to stop; all replies so far are cached.
    """
    passes = endpoint_passes(config, asked, ctx.seed)
    told = ask_endpoints(ctx, list(passes.values()), Rule(asked.places, config.max_errors, FEWER))
    variants = frozenset(name for name, one in passes.items() if one.name == config.baseline != name)
    return Told(dict(zip(passes, told.by_pass, strict=True)), passes, variants, told.failures, told.cached)


def with_endpoints(ctx: StageContext, asked: Asked, sampled: list[Sampled], told: Told) -> tuple[Asked, list[Sampled]]:
    """Return the prompts that all endpoints answered, and everybody's answers to them; write what failed.

    Raises:
        PipelineError: there is no such prompt.
    """
    kept = [i for i in range(len(asked.rows)) if all(own[i] is not None for own in told.answers.values())]
    if told.failures:
        write_failures(ctx.out / FAILURES, told.failures)
        without = len(asked.rows) - len(kept)
        are = agreeing(without, "is", "are")
        ctx.note(f"{counted(without, 'prompt')} {are} left out for all models: an endpoint gave no answer")
    if not kept:
        remedy = f"{ctx.out / FAILURES} has the reasons; run again: only what failed is asked"
        raise PipelineError(Problem("no prompt was answered by all endpoints", "one at least", remedy))
    own = [_sampled(name, told, kept) for name in told.passes]
    asked = asked._replace(
        rows=[asked.rows[i] for i in kept],
        places=[asked.places[i] for i in kept],
        groups=[asked.groups[i] for i in kept],
        references=[asked.references[i] for i in kept],
    )
    return asked, [*(each.at(kept) for each in sampled), *own]


def kl_notes(config: Config) -> list[str]:
    """Return a sentence on each KL that is not measured because of an endpoint."""
    if config.baseline in config.endpoints:
        return [f"no KL is measured: the baseline {config.baseline} is behind a server, which gives no probabilities"]
    names = sorted(config.endpoints)
    if not names:
        return []
    are = agreeing(len(names), "it is", "they are")
    return [f"no KL for {listed(names)}: {are} behind a server, which gives no probabilities of its answers to compare"]


def _sampled(name: str, told: Told, kept: Sequence[int]) -> Sampled:
    answers = [answer for i in kept if (answer := told.answers[name][i]) is not None]
    return Sampled(
        name=name,
        ref=told.passes[name].endpoint.ref,
        texts=[answer.text for answer in answers],
        lengths=[answer.tokens for answer in answers],
        stops=["max_new_tokens" if answer.finish_reason == "max_new_tokens" else "eos" for answer in answers],
        kl=None,
        kl_k3=None,
        is_variant=name in told.variants,
    )
