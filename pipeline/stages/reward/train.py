"""Trains a reward model with trl's RewardTrainer and reports on held-out pairs; `config.py` names the papers."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from transformers import set_seed
from trl import RewardConfig, RewardTrainer

from pipeline.errors import PipelineError, agreeing, counted
from pipeline.evaluation.judging import card_summary
from pipeline.models.scoring import score
from pipeline.parallel.consolidation import consolidated_model
from pipeline.stage import StageContext, StageResult
from pipeline.stages.reward.config import Config
from pipeline.training.arguments import precision_of
from pipeline.training.composition import TrainerParts, composed
from pipeline.training.data.batch_loader import BatchLoader
from pipeline.training.data.collate import PairCollator
from pipeline.training.data.encoding import EncodedRow, EncodedRows, encode_pairs
from pipeline.training.data.sources import EncodedData, TrainerRows, encode_source
from pipeline.training.fields import margin_problem, nothing_fits
from pipeline.training.finish import finish, save_trained
from pipeline.training.loop import run_trainer
from pipeline.training.pair_report import full_sequences, report_on_pairs
from pipeline.training.report_columns import ReportColumns
from pipeline.training.setup import OpenedModel, arguments_for, build_trainer, open_reward_model, plan_steps, prepare

if TYPE_CHECKING:
    from pipeline.plain_data import Row


def run(ctx: StageContext, config: Config) -> StageResult:
    """Train the reward model and write its report on held-out pairs."""
    ctx = prepare(ctx)
    train = config.train
    opened = open_reward_model(ctx, config.adapter, train.max_length)
    data, can_evaluate = _encode(ctx, config, opened)
    lengths = [len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in data.train]
    schedule = plan_steps(ctx, train, lengths, "pairs")
    arguments = arguments_for(
        RewardConfig,
        ctx,
        train,
        schedule,
        has_held_out=can_evaluate,
        max_length=None,
        liger_kernel_config={"fused_linear_cross_entropy": False},  # a reward head has no vocabulary logits to fuse
    )
    set_seed(arguments.seed)  # as the trainer will: a sharded adapter is initialised from this random state
    collate = PairCollator(opened.tokenizer.pad_token_id)
    parts = TrainerParts.of(BatchLoader(schedule.batches, data.train))
    trainer = build_trainer(
        composed(RewardTrainer), opened, arguments, _columns(data), parts, task="reward", data_collator=collate
    )
    ctx.phase(f"training on {counted(len(data.train), 'pair')}")
    trained = run_trainer(ctx, trainer, schedule.batches, schedule.steps, config.adapter)
    consolidated = consolidated_model(trainer)
    seen = [row["chosen_ids"] for row in data.train[:3]]
    lineage = save_trained(ctx, consolidated, opened.tokenizer, ctx.input("model"), config.adapter, seen)
    started = time.perf_counter()
    metrics = {}
    if data.held_out and consolidated is not None:
        pad_id, precision = opened.tokenizer.pad_token_id, precision_of(ctx)
        metrics = report_on_pairs(
            ctx,
            data.held_out,
            lambda answers: score(consolidated, answers, pad_id, precision=precision),
            ReportColumns.of(config),
        )
    trained = replace(trained, scoring_seconds=time.perf_counter() - started)
    return finish(ctx, trained, metrics=metrics, rows=data.counts, lineage=lineage, summary=card_summary(metrics))


def _encode(ctx: StageContext, config: Config, opened: OpenedModel) -> tuple[EncodedData, bool]:
    """Tokenize the pairs, and those of `test` in place of held-out ones.

    Returns:
        The encoded pairs, and whether the held-out ones are for evaluations during training.

    Raises:
        PipelineError: no pair is left, margins are used and pairs lack them, or the report cannot read its columns.
    """
    rows, max_length = ctx.load_rows("data"), opened.max_length
    tests = ctx.load_rows("test") if config.test else None
    test_rows = rows.held_out if tests is None else tests.train
    ReportColumns.of(config).check(test_rows)
    encode = functools.partial(encode_pairs, opened.tokenizer, scored=True)
    source = encode_source(ctx, "data", rows, encode, what="pairs", max_length=max_length)
    train = _sequences(source.train, rows.train, use_margin=config.train.use_margin)
    held_out = _sequences(source.held_out, rows.held_out, use_margin=False)
    if tests is not None:
        tested = encode_source(ctx, "test", tests, encode, what="pairs to test", max_length=max_length)
        held_out = _sequences(tested.train, test_rows, use_margin=False)
        if rows.held_out:
            are = agreeing(len(rows.held_out), "is", "are")
            ctx.note(
                f"{counted(len(rows.held_out), 'held-out pair')} of `data` {are} not used: the report is of `test`"
            )
    if not train:
        raise nothing_fits("pair", max_length)
    counts = {**source.counts, "held_out": len(test_rows), "dropped": len(source.train.too_long)}
    return EncodedData(train, held_out, counts), bool(rows.held_out) and bool(held_out) and not config.test


def _columns(data: EncodedData) -> TrainerRows:
    """Return the pairs with the columns that the trainer reads; the others are for the report."""
    train, held_out = (
        [{"chosen_ids": row["chosen_ids"], "rejected_ids": row["rejected_ids"]} for row in part]
        for part in (data.train, data.held_out)
    )
    return TrainerRows(train, held_out)


def _sequences(encoded: EncodedRows, rows: Sequence[Row], *, use_margin: bool) -> list[EncodedRow]:
    """Return the full sequences of encoded pairs, with the rows' margins if they are used.

    Raises:
        PipelineError: margins are used, and rows lack them.
    """
    pairs = full_sequences(encoded, rows)
    if not use_margin:
        return pairs
    for pair in pairs:
        if pair["row"].get("margin") is not None:
            pair["margin"] = float(pair["row"]["margin"])
    problem = margin_problem(len(pairs), sum("margin" in pair for pair in pairs))
    if problem is not None:
        raise PipelineError(problem)
    return pairs
