"""Trains a policy on good and bad rows with trl's KTOTrainer; `config.py` names the paper."""

from __future__ import annotations

import functools
import time
from dataclasses import replace

from trl import KTOConfig, KTOTrainer

from pipeline.errors import counted
from pipeline.parallel.batch_split import BatchSplit, divide
from pipeline.parallel.consolidation import consolidated_model
from pipeline.stage import StageContext, StageResult
from pipeline.stages.kto.config import Config, Train
from pipeline.stages.kto.rows import add_mismatched, check_labels, label_pairs, length_quantiles, weight_advice
from pipeline.training.composition import TrainerParts, composed
from pipeline.training.data.batch_loader import BatchLoader
from pipeline.training.data.batches import Batches
from pipeline.training.data.encoding import encode_labelled, encode_pairs
from pipeline.training.data.sources import EncodedData, encode_source
from pipeline.training.distribution import note_model_parallel
from pipeline.training.finish import save_and_finish
from pipeline.training.loop import run_trainer, steps_of
from pipeline.training.reference import Reference
from pipeline.training.setup import OpenedModel, Schedule, arguments_for, build_trainer, open_causal_lm, prepare

REFERENCE_COLUMNS = {"ref_logps": "completion_ids", "ref_KL_logps": "KL_completion_ids"}
"""Columns in which trl reads the reference's log-probabilities, by the column with the response's ids."""


class LabelledKTOTrainer(KTOTrainer):  # type: ignore[misc]
    """trl's KTOTrainer that logs the margin of micro-batches in which one label may be missing."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the margin between the mean rewards of good and of bad rows."""
        _set_margin(self._metrics["train" if self.model.training else "eval"])
        super().log(logs, start_time)


def run(ctx: StageContext, config: Config) -> StageResult:
    """Optimise the policy on good and bad rows."""
    ctx = prepare(ctx)
    train = config.train
    opened = open_causal_lm(ctx, config.adapter, train.max_length)
    data, is_paired = _encode(ctx, opened)
    schedule = _plan_steps(ctx, train, data, is_paired=is_paired)
    arguments = arguments_for(
        KTOConfig,
        ctx,
        train,
        schedule,
        has_held_out=bool(data.held_out),
        per_device_eval_batch_size=schedule.micro_batch,
        beta=train.beta,
        loss_type=train.loss_type,
        max_length=None,
        precompute_ref_log_probs=True,
    )
    counts = data.counts
    if not is_paired:
        counts = {**counts, **_count_labels(ctx, data, arguments)}
    ctx.phase("reference log-probabilities")
    started = time.perf_counter()
    batches = BatchLoader(schedule.batches, rows_per_unit=_rows_per_unit(is_paired=is_paired))
    parts = TrainerParts.of(batches, reference=Reference(ctx, REFERENCE_COLUMNS))
    trainer_class = composed(KTOTrainer if is_paired else LabelledKTOTrainer)
    trainer = build_trainer(trainer_class, opened, arguments, data, parts)
    scoring_s = time.perf_counter() - started
    ctx.phase(f"training on {counted(len(data.train), 'row')}")
    trained = run_trainer(ctx, trainer, schedule.batches, schedule.steps, config.adapter)
    margin = trained.metrics.get("eval_rewards/margins", trained.metrics.get("rewards/margins", 0.0))
    return save_and_finish(
        ctx,
        replace(trained, scoring_seconds=scoring_s),
        consolidated_model(trainer),
        opened,
        [[*row["prompt_ids"], *row["completion_ids"]] for row in data.train[:3]],
        rows=counts,
        summary=f"implicit reward of good responses is {margin:.3f} above that of bad ones",
    )


def _rows_per_unit(*, is_paired: bool) -> int:
    """Return the number of consecutive rows that stay in one batch."""
    return 2 if is_paired else 1


def _encode(ctx: StageContext, opened: OpenedModel) -> tuple[EncodedData, bool]:
    """Tokenize the rows and give each a mismatched response; also return whether they are pairs.

    Raises:
        PipelineError: no row, or no row of one label, is left; or all rows have the same prompt.
    """
    rows, max_length = ctx.load_rows("data"), opened.max_length
    is_paired = rows.shape == "preference"
    encode = functools.partial(encode_pairs if is_paired else encode_labelled, opened.tokenizer)
    what = "pairs" if is_paired else "rows"
    source = encode_source(ctx, "data", rows, encode, what=what, max_length=max_length)
    train, held_out = (label_pairs(part.rows) if is_paired else part.rows for part in (source.train, source.held_out))
    check_labels(train, max_length, is_paired=is_paired)
    held_out = add_mismatched(held_out, train, max_length, ctx.seed)
    train = add_mismatched(train, train, max_length, ctx.seed)
    return EncodedData(train, held_out, {**source.counts, "dropped": len(source.train.too_long)}), is_paired


def _plan_steps(ctx: StageContext, train: Train, data: EncodedData, *, is_paired: bool) -> Schedule:
    """Divide batches of units over the processes; labelled rows are sorted by the quantile of their length.

    Raises:
        PipelineError: the processes do not divide `kl_batch`, or there are fewer rows than one batch.
    """
    size = _rows_per_unit(is_paired=is_paired)
    lengths = [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in data.train]
    micro_batch = _share(ctx, train, size, max(lengths))
    batches = Batches(
        [sum(lengths[i : i + size]) for i in range(0, len(lengths), size)],
        train.batch_size // size,
        micro_batch // size,
        ctx.seed,
        order=None if is_paired else length_quantiles(lengths, [row["label"] for row in data.train]),
    )
    return Schedule(batches, micro_batch, steps_of(batches, train.epochs, train.max_steps))


def _share(ctx: StageContext, train: Train, rows_per_unit: int, longest: int) -> int:
    """Return the rows per forward pass of a process: its share of `kl_batch`, over which trl averages the KL.

    Raises:
        PipelineError: the processes do not divide `kl_batch`.
    """
    note_model_parallel(ctx)
    share = divide(
        train.kl_batch, train.kl_batch, longest, ctx.replicas, rows_per_unit=rows_per_unit, batch_key="kl_batch"
    ).micro_batch
    batch_split = BatchSplit(train.batch_size, share, ctx.replicas)
    sentence = batch_split.sentence("rows", longest)
    ctx.report(batch=sentence)
    if ctx.ranks > 1:
        ctx.note(sentence)
    return share


def _count_labels(ctx: StageContext, data: EncodedData, arguments: KTOConfig) -> dict[str, int]:
    """Return the numbers of good and bad rows, and note if their total weights are far from balance."""
    good = sum(row["label"] for row in data.train)
    bad = len(data.train) - good
    note = weight_advice(good, bad, arguments.desirable_weight, arguments.undesirable_weight)
    if note:
        ctx.note(note)
    return {"good": good, "bad": bad}


def _set_margin(sums: dict[str, list[float]]) -> None:
    """Set the logged margin to the difference of the mean rewards: trl's omits micro-batches of one label."""
    good, bad = sums.get("rewards/chosen"), sums.get("rewards/rejected")
    if good and bad:
        sums["rewards/margins"] = [sum(good) / len(good) - sum(bad) / len(bad)]
