"""The answers of an evaluation: every model answers every prompt, and its divergence from the baseline is measured.

Knows nothing of scores and of comparisons.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from pipeline.evaluation.prompts import Asked
from pipeline.evaluation.report.record import GREEDY
from pipeline.evaluation.report.samples import StopReason
from pipeline.evaluation.stats.divergence import per_sequence
from pipeline.evaluation.stats.estimate import rounded
from pipeline.models.generate.sampling import Sampling
from pipeline.models.load.pretrained import load_tokenizer
from pipeline.models.tokenizer.contract import disagreements, facts
from pipeline.stage import ResolvedInput, StageContext
from pipeline.stages.evaluate.config import Config
from pipeline.training.data.encoding import encode_prompts
from pipeline.training.sampler import Request, Response, Sampler, Scoring

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampled:
    """The answers of one model.

    Attributes:
        name: name in the report.
        ref: ref of the checkpoint in the store; model and revision of an endpoint.
        texts: one answer per prompt.
        lengths: tokens of each answer, its end token included.
        stops: reason why each answer ends.
        kl: k1 estimate of the KL to the baseline, per answer; None for the baseline and for greedy answers.
        kl_k3: k3 estimate of the same KL.
        is_variant: whether it is the baseline's checkpoint with another decoding.
        nll: negative log-likelihood of each answer under the baseline in nats, at the temperature of the answers; None
            for greedy answers.
    """

    name: str
    ref: str
    texts: list[str]
    lengths: list[int]
    stops: list[StopReason]
    kl: list[float] | None
    kl_k3: list[float] | None
    is_variant: bool
    nll: list[float] | None = None

    def at(self, places: Sequence[int]) -> Sampled:
        """Return the answers to some of the prompts."""
        return replace(
            self,
            texts=[self.texts[i] for i in places],
            lengths=[self.lengths[i] for i in places],
            stops=[self.stops[i] for i in places],
            kl=self.kl and [self.kl[i] for i in places],
            kl_k3=self.kl_k3 and [self.kl_k3[i] for i in places],
            nll=self.nll and [self.nll[i] for i in places],
        )


class _Column(NamedTuple):
    """The answers of one model with one decoding.

    Attributes:
        model: name of the model in the configuration.
        request: what it is asked.
    """

    model: str
    request: Request

    def scoring(self, responses: Sequence[Response], by: Request | None = None) -> Scoring:
        """Return its responses as something to score, by the model of another request or by its own."""
        judge, own = by or self.request, self.request
        ids = [response.ids for response in responses]
        return Scoring(judge.source, judge.tokenizer, own.prompts, ids, own.sampling.temperature)


def sample_all(ctx: StageContext, config: Config, asked: Asked) -> tuple[list[Sampled], int]:
    """Let every checkpoint answer every prompt, on all ranks, and measure the KL to the baseline if it is one of them.

    The baseline's log-probabilities, which the KL needs, also say how likely it finds the answers, its own among them.

    With `best_of_n` the baseline answers several times, under the names of `config.draws`, which come last.

    Returns:
        The answers of each checkpoint and decoding, and the number of those that were reused.
    """
    if not config.models:
        return [], 0
    columns = _columns(ctx, config, asked)
    tokenizers = {column.model: column.request.tokenizer for column in columns.values()}
    compared = _compared(ctx, config, tokenizers)
    draws = _draws(columns, config)
    sampler = Sampler(ctx, [column.request for column in [*columns.values(), *draws.values()]])
    responses: dict[str, list[Response]] = {}
    own: dict[str, list[list[float]]] = {}
    models = sorted(config.models, key=lambda name: name == config.baseline)  # KL needs it again
    for first in range(0, len(models), ctx.ranks):
        now = models[first : first + ctx.ranks]  # about one for each rank, so that it is loaded once
        names = [name for name, column in columns.items() if column.model in now]
        responses |= dict(zip(names, sampler.answer([columns[name].request for name in names]), strict=True))
        scored = [name for name in now if name in compared]
        scorings = [columns[name].scoring(responses[name]) for name in scored]
        own |= dict(zip(scored, sampler.logprobs(scorings), strict=True))
    drawn = sampler.answer([column.request for column in draws.values()]) if draws else []
    by = columns[config.baseline].request if config.baseline in columns else None

    def is_same(column: _Column) -> bool:
        return by is not None and column.request.source.fingerprint == by.source.fingerprint

    judged = [*compared, config.baseline] if compared else []
    scorings = [columns[name].scoring(responses[name], by) for name in judged]
    by_baseline = dict(zip(judged, sampler.logprobs(scorings), strict=True))
    sampler.report()

    def sampled_from(name: str, column: _Column) -> Sampled:
        is_variant = name != config.baseline and is_same(column)
        one = _sampled(name, column, responses[name], is_variant=is_variant)
        if name in own:
            k1, k3 = _kl(own[name], by_baseline[name])
            one = replace(one, kl=k1, kl_k3=k3)
        return replace(one, nll=_nll(by_baseline[name])) if name in by_baseline else one

    sampled = [sampled_from(name, column) for name, column in columns.items()]
    sampled += [
        _sampled(name, column, own, is_variant=True) for (name, column), own in zip(draws.items(), drawn, strict=True)
    ]
    return sampled, sampler.reused


def _columns(ctx: StageContext, config: Config, asked: Asked) -> dict[str, _Column]:
    """Return what is asked of the models, by name in the report.

    The random numbers of a prompt depend on its index in the data, so a subset of prompts gets the same answers.
    """
    columns: dict[str, _Column] = {}
    for name, source in zip(config.models, ctx.inputs["models"], strict=True):
        tokenizer = load_tokenizer(source, ctx.trust_remote_code)
        prompts = [row["prompt_ids"] for row in encode_prompts(tokenizer, asked.rows).rows]
        for is_greedy in (False, True) if name in config.also_greedy else (False,):
            sampling = Sampling(greedy=is_greedy, temperature=config.temperature)
            most, engine = config.max_new_tokens, config.engine
            request = Request(source, tokenizer, prompts, asked.places, sampling, most, ctx.seed, engine=engine)
            columns[f"{name}{GREEDY}" if is_greedy else name] = _Column(name, request)
    return columns


def _draws(columns: dict[str, _Column], config: Config) -> dict[str, _Column]:
    """Return the further answers of the baseline that are asked for, each with a seed of its own."""
    draws = {}
    for number, name in enumerate(config.draws, start=2):
        request = columns[config.baseline].request
        text = f"{request.seed}/best_of_n/{number}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        draws[name] = _Column(config.baseline, replace(request, seed=seed))
    return draws


def _compared(ctx: StageContext, config: Config, tokenizers: dict[str, PreTrainedTokenizerBase]) -> list[str]:
    """Return the models whose KL to the baseline is measured; note those whose tokenizer is another."""
    compared: list[str] = []
    if config.baseline not in tokenizers:
        return compared  # it is an endpoint
    for name in config.models:
        differs = disagreements(facts(tokenizers[config.baseline], config.baseline), facts(tokenizers[name], name))
        if differs:
            ctx.note(f"no KL for {name}: {differs[0]}")
        elif name != config.baseline:
            compared.append(name)
    return compared


def _sampled(name: str, column: _Column, responses: Sequence[Response], *, is_variant: bool) -> Sampled:
    return Sampled(
        name=name,
        ref=_ref(column.request.source),
        texts=[response.text for response in responses],
        lengths=[len(response.ids) for response in responses],
        stops=[cast(StopReason, response.finish_reason) for response in responses],  # no stop string was given
        kl=None,
        kl_k3=None,
        is_variant=is_variant,
    )


def _kl(policy: list[list[float]], reference: list[list[float]]) -> tuple[list[float], list[float]]:
    """Return k1 and k3 of each response, rounded as in the samples file; NaN for an empty response.

    Args:
        policy: log-probability of each token of the responses under the model that sampled them.
        reference: the same under the baseline.
    """
    k1, k3 = [[float("nan")] * len(policy) for _ in range(2)]
    rows = [i for i, values in enumerate(policy) if values]
    if not rows:
        return k1, k3
    longest = max(len(policy[i]) for i in rows)
    policy_BT, reference_BT = (
        np.array([[*side[i], *[0.0] * (longest - len(side[i]))] for i in rows]) for side in (policy, reference)
    )
    mask_BT = np.array([[t < len(policy[i]) for t in range(longest)] for i in rows])
    sums = per_sequence(policy_BT, reference_BT, mask_BT)
    for i, own_k1, own_k3 in zip(rows, sums.k1_B.tolist(), sums.k3_B.tolist(), strict=True):
        k1[i], k3[i] = rounded(own_k1), rounded(own_k3)
    return k1, k3


def _nll(logprobs: list[list[float]]) -> list[float]:
    """Return -Σ log p of each response, rounded as in the samples file; NaN for an empty response."""
    return [rounded(-sum(values)) if values else float("nan") for values in logprobs]


def _ref(source: ResolvedInput) -> str:
    version = source.manifest.get("version")
    return f"{source.name}@v{version}" if version else source.ref
