"""The answers of an evaluation: every model answers every prompt, and its divergence from the baseline is measured.

Owns the loading of models, one beside the baseline at a time. Knows nothing of scores and of comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pipeline.errors import counted
from pipeline.evaluation.prompts import Asked
from pipeline.evaluation.report.samples import StopReason
from pipeline.evaluation.stats.divergence import per_sequence
from pipeline.evaluation.stats.estimate import rounded
from pipeline.models.generate.sampling import Sampling
from pipeline.models.load.pretrained import load_causal_lm, load_tokenizer
from pipeline.models.logprobs import response_logprobs
from pipeline.models.tokenizer.contract import disagreements, facts
from pipeline.stage import ResolvedInput, StageContext
from pipeline.stages.evaluate.config import Config
from pipeline.training.arguments import frozen_weights
from pipeline.training.data.encoding import encode_prompts
from pipeline.training.fitting import fit
from pipeline.training.sampler import Sampler

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampled:
    """The answers of one model.

    Attributes:
        name: name in the report.
        ref: ref of the checkpoint in the store.
        texts: one answer per prompt.
        lengths: tokens of each answer, its end token included.
        stops: reason why each answer ends.
        kl: k1 estimate of the KL to the baseline, per answer; None for the baseline and for greedy answers.
        kl_k3: k3 estimate of the same KL.
        is_variant: whether it is the baseline's checkpoint with another decoding.
    """

    name: str
    ref: str
    texts: list[str]
    lengths: list[int]
    stops: list[StopReason]
    kl: list[float] | None
    kl_k3: list[float] | None
    is_variant: bool


def sample_all(ctx: StageContext, config: Config, asked: Asked) -> list[Sampled]:
    """Let every model answer every prompt; the baseline stays loaded, because KL is measured to it."""
    device, weights = frozen_weights(ctx)

    def loaded(source: ResolvedInput, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        model = load_causal_lm(source, trust_remote_code=ctx.trust_remote_code, **weights)
        fit(ctx, model, tokenizer, weights)
        return model.to(device)

    inputs = dict(zip(config.models, ctx.inputs["models"], strict=True))
    greedy = [config.baseline] if config.greedy is None else config.greedy
    base_input = inputs[config.baseline]
    base_tokenizer = load_tokenizer(base_input, ctx.trust_remote_code)
    baseline = loaded(base_input, base_tokenizer)
    total, done = (len(inputs) + len(greedy)) * len(asked.rows), 0
    sampled = []
    for name, source in inputs.items():
        is_baseline = name == config.baseline
        tokenizer = base_tokenizer if is_baseline else load_tokenizer(source, ctx.trust_remote_code)
        model = baseline if is_baseline else loaded(source, tokenizer)
        differs = disagreements(facts(base_tokenizer, config.baseline), facts(tokenizer, name))
        if differs:
            ctx.note(f"no KL for {name}: {differs[0]}")
        reference = None if is_baseline or differs else baseline
        is_variant = source.fingerprint == base_input.fingerprint
        ctx.phase(f"{name} answers {counted(len(asked.rows), 'prompt')}")
        generator = ResponseGenerator(ctx, config, model, tokenizer, done, total)
        own = generator.answer(name, source, asked, reference, greedy=False)
        sampled.append(replace(own, is_variant=is_variant and not is_baseline))
        done += len(asked.rows)
        if name in greedy:
            ctx.phase(f"{name} answers {counted(len(asked.rows), 'prompt')} greedily")
            generator = ResponseGenerator(ctx, config, model, tokenizer, done, total)
            own = generator.answer(f"{name} (greedy)", source, asked, None, greedy=True)
            sampled.append(replace(own, is_variant=is_variant))
            done += len(asked.rows)
        del model, generator  # only one model beside the baseline is loaded at a time
    return sampled


@dataclass(frozen=True)
class ResponseGenerator:
    """A loaded model with its tokenizer; `done` of `total` prompts were answered before it."""

    ctx: StageContext
    config: Config
    model: Any
    tokenizer: Any
    done: int
    total: int

    def answer(
        self, name: str, source: ResolvedInput, asked: Asked, reference: PreTrainedModel | None, *, greedy: bool
    ) -> Sampled:
        """Answer every prompt once, and measure the KL to ``reference`` if one is given.

        The random numbers of a prompt depend on its index in the data, so a subset of prompts gets the same answers.
        """
        prompts = [row["prompt_ids"] for row in encode_prompts(self.tokenizer, asked.rows).rows]
        sampling = Sampling(greedy=greedy, temperature=self.config.temperature)
        sampler = Sampler(self.model, self.tokenizer, self.config.max_new_tokens, sampling, self.ctx.seed)
        responses = sampler.sample(prompts, asked.places, on_progress=self._answered, say=self.ctx.note)
        sampled = [response.ids for response in responses]
        k1, k3 = self._kl(prompts, sampled, reference) if reference is not None else (None, None)
        return Sampled(
            name=name,
            ref=_ref(source),
            texts=[response.text for response in responses],
            lengths=[len(ids) for ids in sampled],
            stops=[cast(StopReason, response.finish_reason) for response in responses],  # no stop string was given
            kl=k1,
            kl_k3=k3,
            is_variant=False,
        )

    def _answered(self, done: int, _: int) -> None:
        self.ctx.progress(self.done + done, self.total)
        self.ctx.stop_if_asked()

    def _kl(
        self, prompts: list[list[int]], responses: list[list[int]], reference: PreTrainedModel
    ) -> tuple[list[float], list[float]]:
        """Return k1 and k3 of each response, rounded as in the samples file; NaN for an empty response."""
        rows = [i for i, response in enumerate(responses) if response]
        prompts, nonempty = [prompts[i] for i in rows], [responses[i] for i in rows]
        longest = max(map(len, nonempty))
        padded = {}
        for side, model in (("policy", self.model), ("reference", reference)):
            values = response_logprobs(model, prompts, nonempty, temperature=self.config.temperature)
            padded[side] = np.array([[*row, *[0.0] * (longest - len(row))] for row in values])
        mask = np.array([[t < len(response) for t in range(longest)] for response in nonempty])
        sums = per_sequence(padded["policy"], padded["reference"], mask)
        k1, k3 = [[float("nan")] * len(responses) for _ in range(2)]
        for i, own_k1, own_k3 in zip(rows, sums.k1_B.tolist(), sums.k3_B.tolist(), strict=True):
            k1[i], k3[i] = rounded(own_k1), rounded(own_k3)
        return k1, k3


def _ref(source: ResolvedInput) -> str:
    version = source.manifest.get("version")
    return f"{source.name}@v{version}" if version else source.ref
