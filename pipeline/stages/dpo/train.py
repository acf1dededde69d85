"""Trains a policy on preference pairs with trl's DPOTrainer; `config.py` names the paper."""

from __future__ import annotations

import functools
import time
from dataclasses import replace

from trl import DPOConfig, DPOTrainer

from pipeline.errors import counted
from pipeline.parallel.consolidation import consolidated_model
from pipeline.stage import StageContext, StageResult
from pipeline.stages.dpo.config import Config
from pipeline.training.composition import TrainerParts, composed
from pipeline.training.data.batch_loader import BatchLoader
from pipeline.training.data.encoding import encode_pairs
from pipeline.training.data.sources import EncodedData, encode_source
from pipeline.training.fields import nothing_fits
from pipeline.training.finish import save_and_finish
from pipeline.training.loop import run_trainer
from pipeline.training.reference import Reference
from pipeline.training.setup import OpenedModel, arguments_for, build_trainer, open_causal_lm, plan_steps, prepare

REFERENCE_COLUMNS = {"ref_chosen_logps": "chosen_ids", "ref_rejected_logps": "rejected_ids"}
"""Columns in which trl reads the reference's log-probabilities, by the column with the response's ids."""


def run(ctx: StageContext, config: Config) -> StageResult:
    """Optimise the policy on preference pairs."""
    ctx = prepare(ctx)
    train = config.train
    opened = open_causal_lm(ctx, config.adapter, train.max_length)
    data = _encode(ctx, opened)
    lengths = [2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in data.train]
    schedule = plan_steps(ctx, train, lengths, "pairs")
    arguments = arguments_for(
        DPOConfig,
        ctx,
        train,
        schedule,
        has_held_out=bool(data.held_out),
        beta=train.beta,
        loss_type=train.loss_type,
        max_length=None,
        precompute_ref_log_probs=True,
    )
    ctx.phase("reference log-probabilities")
    started = time.perf_counter()
    parts = TrainerParts.of(BatchLoader(schedule.batches), reference=Reference(ctx, REFERENCE_COLUMNS))
    trainer = build_trainer(composed(DPOTrainer), opened, arguments, data, parts)
    scoring_s = time.perf_counter() - started
    ctx.phase(f"training on {counted(len(data.train), 'pair')}")
    trained = run_trainer(ctx, trainer, schedule.batches, schedule.steps, config.adapter)
    accuracy = trained.metrics.get("eval_rewards/accuracies", trained.metrics.get("rewards/accuracies", 0.0))
    return save_and_finish(
        ctx,
        replace(trained, scoring_seconds=scoring_s),
        consolidated_model(trainer),
        opened,
        [[*row["prompt_ids"], *row["chosen_ids"]] for row in data.train[:3]],
        rows=data.counts,
        summary=f"implicit reward prefers the chosen response in {accuracy:.1%} of pairs",
    )


def _encode(ctx: StageContext, opened: OpenedModel) -> EncodedData:
    """Tokenize the pairs and leave out those that are too long.

    Raises:
        PipelineError: no pair is left.
    """
    encode = functools.partial(encode_pairs, opened.tokenizer)
    source = encode_source(ctx, "data", ctx.load_rows("data"), encode, what="pairs", max_length=opened.max_length)
    if not source.train.rows:
        raise nothing_fits("pair", opened.max_length)
    counts = {**source.counts, "dropped": len(source.train.too_long)}
    return EncodedData(source.train.rows, source.held_out.rows, counts)
