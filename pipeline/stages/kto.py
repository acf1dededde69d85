"""Kahneman-Tversky optimisation (KTO): align the policy to responses that are good or bad each by itself, with trl.

Reference: Ethayarajh et al. 2024, arXiv:2402.01306, equations 7 and 8; `loss_type: apo_zero_unpaired` is APO's,
arXiv:2408.06266. Rows are labelled good or bad, or come as preference pairs: each pair gives a good row and a bad one,
which stay in one batch. If good responses are longer, buckets by length alone would hold one label only. Labelled rows
are therefore sorted by the quantile of their length among the rows of their label.

The KL to the reference, the loss's reference point, is estimated on mismatched responses, those to other prompts. trl
matches rows by their position in a micro-batch. Here the seed draws one mismatched response per row, once, so that the
reference log-probabilities can be computed beforehand. The estimate is averaged over `kl_batch` rows; it changes the
result, so it is a recipe setting, and `compute.micro_batch` does not apply.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from pipeline.errors import PipelineError, Problem, agreeing, counted
from pipeline.models.adapter_config import Adapter
from pipeline.stage import Data, Input, StageConfig, StageContext, StageResult, stage
from pipeline.training.fields import CommonTrain, unknown_word

LOSSES = ("kto", "apo_zero_unpaired")

BALANCE = (1.0, 1.5)
"""Range of (λ_D n_D) / (λ_U n_U), the total weight of good rows over that of bad rows, by equation 9."""

FAR_OFF = 1.5
"""Factor by which the ratio must be below or above `BALANCE` before the stage notes it."""


class Train(CommonTrain):
    """`train:` of KTO; other keys are fields of trl's KTOConfig.

    Attributes:
        batch_size: rows per optimizer step over all processes; a pair makes two.
        beta: strength of the pull towards the reference (β of equation 7).
        loss_type: `kto` or `apo_zero_unpaired`.
        kl_batch: rows the divergence from the reference is averaged over, and rows per forward of all processes
            together; an even number.
    """

    trainer: ClassVar[str] = "KTOConfig"
    learning_rate: float = Field(default=1e-6, gt=0)
    beta: float = Field(default=0.1, gt=0)
    loss_type: str = "kto"
    kl_batch: int = Field(default=8, ge=2, multiple_of=2)

    def check(self) -> list[Problem]:
        """Return contradictions between fields, and losses trl does not have."""
        problems = super().check()
        if self.loss_type not in LOSSES:
            problems.append(unknown_word("loss_type", self.loss_type, LOSSES))
        if self.batch_size % self.kl_batch:
            problems.append(
                Problem(f"train.batch_size is {self.batch_size}", f"a multiple of train.kl_batch ({self.kl_batch})")
            )
        return problems


class Config(StageConfig):
    """Configuration of a KTO stage.

    Attributes:
        data: labelled rows, or preference pairs: the chosen response is a good row, the rejected one a bad row.
        model: the policy's start and its reference.
        adapter: LoRA instead of full fine-tuning.
        train: how to train.
    """

    data: Annotated[str, Data(("preference", "labelled"))]
    model: Annotated[str, Input(external=True)]
    adapter: Adapter | None = None
    train: Train = Train()

    def check(self) -> list[Problem]:
        """Return contradictions in `train`."""
        return self.train.check()


@stage("kto", version=2, config=Config, makes="model", parallel=True)
def run(ctx: StageContext, config: Config) -> StageResult:
    """Optimise the policy on good and bad rows."""
    from datasets import Dataset
    from transformers import set_seed
    from trl import KTOConfig, KTOTrainer

    from pipeline.models.adapters import lora_config
    from pipeline.models.load import load_causal_lm, load_tokenizer
    from pipeline.parallel.consolidation import consolidated_model
    from pipeline.training.arguments import build_arguments, prepare_torch, starting_weights
    from pipeline.training.batches import Batches, BucketedBatches
    from pipeline.training.encode import encode_labelled, encode_pairs
    from pipeline.training.encoded import encode_source
    from pipeline.training.finish import finish, save_trained
    from pipeline.training.fitting import context_length, fit
    from pipeline.training.loop import run_trainer, steps_of
    from pipeline.training.reference import OwnReference, unhashed, with_reference

    class BucketedKTOTrainer(OwnReference, BucketedBatches, KTOTrainer):  # type: ignore[misc]
        """trl's KTOTrainer on tokenized rows with mismatched responses, with bucketed batches."""

        def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
            return dataset

        def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
            columns = {"ref_logps": "completion_ids", "ref_KL_logps": "KL_completion_ids"}
            return with_reference(ctx, self.model, dataset, columns, ctx.work / f"reference-{name}.json")

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if not is_paired:
                _set_margin(self._metrics["train" if self.model.training else "eval"])
            super().log(logs, start_time)

    prepare_torch(ctx)
    set_seed(ctx.seed)
    train, source = config.train, ctx.input("model")
    tokenizer = load_tokenizer(source, ctx.trust_remote_code)
    weights = starting_weights(ctx, config.adapter)
    model = load_causal_lm(source, trust_remote_code=ctx.trust_remote_code, **weights)
    fit(ctx, model, tokenizer, weights)
    max_length = context_length(model, train.max_length)
    rows = ctx.load_rows("data")
    is_paired = rows.shape == "preference"
    rows_per_unit = 2 if is_paired else 1  # rows that stay in one batch
    what = "pairs" if is_paired else "rows"
    encode = functools.partial(encode_pairs if is_paired else encode_labelled, tokenizer)
    encoded_source = encode_source(ctx, "data", rows, encode, what=what, max_length=max_length)
    encoded, held_out = (
        _labelled(part.rows) if is_paired else part.rows for part in (encoded_source.train, encoded_source.held_out)
    )
    _check_fitting(encoded, max_length, is_paired=is_paired)
    dropped = len(encoded_source.train.too_long)
    held_out = _mismatched(held_out, encoded, max_length, ctx.seed)
    encoded = _mismatched(encoded, encoded, max_length, ctx.seed)
    lengths = [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in encoded]
    micro_batch = _share(ctx, train, rows_per_unit, max(lengths))
    batches = Batches(
        [sum(lengths[i : i + rows_per_unit]) for i in range(0, len(lengths), rows_per_unit)],
        train.batch_size // rows_per_unit,
        micro_batch // rows_per_unit,
        ctx.seed,
        order=None if is_paired else _standing(lengths, [row["label"] for row in encoded]),
    )
    steps = steps_of(batches, train.epochs, train.max_steps)
    arguments = build_arguments(
        KTOConfig,
        ctx,
        train,
        micro_batch=micro_batch,
        steps=steps,
        has_held_out=bool(held_out),
        per_device_eval_batch_size=micro_batch,
        beta=train.beta,
        loss_type=train.loss_type,
        max_length=None,
        precompute_ref_log_probs=True,
    )
    good = sum(row["label"] for row in encoded)
    bad = len(encoded) - good
    advice = _advice(good, bad, arguments.desirable_weight, arguments.undesirable_weight)
    if advice and not is_paired:
        ctx.note(advice)
    ctx.phase("reference log-probabilities")
    started = time.perf_counter()
    with unhashed(KTOTrainer):
        trainer = BucketedKTOTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(encoded),
            eval_dataset=Dataset.from_list(held_out) if held_out else None,
            processing_class=tokenizer,
            peft_config=lora_config(config.adapter, "causal", model) if config.adapter else None,
        )
    scoring_s = time.perf_counter() - started
    train_rows = trainer.train_dataset.to_list()
    trainer.train_rows = [{"rows": train_rows[i : i + rows_per_unit]} for i in range(0, len(train_rows), rows_per_unit)]
    trainer.batches, trainer.data_collator = batches, _ungrouped(trainer.data_collator)
    ctx.phase(f"training on {counted(len(encoded), 'row')}")
    trained = run_trainer(ctx, trainer, batches, steps, config.adapter)
    seen = [[*row["prompt_ids"], *row["completion_ids"]] for row in encoded[:3]]
    lineage = save_trained(ctx, consolidated_model(trainer), tokenizer, source, config.adapter, seen)
    last = trained.metrics
    margin = last.get("eval_rewards/margins", last.get("rewards/margins", 0.0))
    return finish(
        ctx,
        trained,
        metrics={},
        rows={
            **encoded_source.counts,
            "dropped": dropped,
            **({} if is_paired else {"good": good, "bad": bad}),
        },
        lineage=lineage,
        summary=f"implicit reward of good responses is {margin:.3f} above that of bad ones",
        scoring_seconds=scoring_s,
    )


def _share(ctx: StageContext, train: Train, rows_per_unit: int, longest: int) -> int:
    """Return the rows per forward pass of a process: its share of `kl_batch`, over which trl averages the KL.

    Raises:
        PipelineError: the processes do not divide `kl_batch`.
    """
    from pipeline.parallel.batch_split import BatchSplit, divide
    from pipeline.training.distribution import note_model_parallel

    note_model_parallel(ctx)
    share = divide(
        train.kl_batch, train.kl_batch, longest, ctx.replicas, group=rows_per_unit, word="kl_batch"
    ).micro_batch
    batch_split = BatchSplit(train.batch_size, share, ctx.replicas)
    ctx.runtime_report["batch"] = batch_split.sentence("rows", longest)
    if ctx.ranks > 1:
        ctx.note(ctx.runtime_report["batch"])
    return share


def _ungrouped(collate: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    """Return a collator that flattens units of several rows, under the key `rows`, before it collates them."""
    return lambda rows: collate([part for row in rows for part in row.get("rows", (row,))])


def _labelled(pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the good row and the bad row of each pair."""
    sides = (("chosen_ids", True), ("rejected_ids", False))
    return [
        {"prompt_ids": pair["prompt_ids"], "completion_ids": pair[side], "label": label}
        for pair in pairs
        for side, label in sides
    ]


def _check_fitting(encoded: Sequence[dict[str, Any]], max_length: int, *, is_paired: bool) -> None:
    """Check that good and bad rows are left after rows that do not fit were removed.

    Raises:
        PipelineError: no row, or no row of one label, is left.
    """
    labels = {row["label"] for row in encoded}
    if len(labels) < 2:
        what = "pair" if is_paired else "row" if not labels else "bad row" if True in labels else "good row"
        statement, expected = f"no {what} fits", f"{what}s of at most {max_length} tokens"
        raise PipelineError(Problem(statement, expected, "raise train.max_length"))


def _standing(lengths: Sequence[int], labels: Sequence[bool]) -> list[float]:
    """Return the quantile of each row's length among the rows of its label, from 0 to 1.

    Sorting by it mixes the labels evenly, in the proportion of their rows.
    """
    standing = [0.0] * len(lengths)
    for label in (True, False):
        alike = sorted((length, row) for row, length in enumerate(lengths) if labels[row] == label)
        for rank, (_, row) in enumerate(alike):
            standing[row] = (rank + 0.5) / len(alike)
    return standing


def _advice(good: int, bad: int, desirable_weight: float, undesirable_weight: float) -> str:
    """Return the advice for labels whose total weights are far from balance; empty if they are not.

    Reference: Ethayarajh et al. 2024, equation 9; the weight of the rarer label is raised.
    """
    if desirable_weight <= 0 or undesirable_weight <= 0:
        return ""  # one side is switched off on purpose
    low, high = BALANCE
    ratio = desirable_weight * good / (undesirable_weight * bad)
    if low / FAR_OFF <= ratio <= high * FAR_OFF:
        return ""
    if ratio < low:
        word, least, most = "desirable_weight", desirable_weight * low / ratio, desirable_weight * high / ratio
    else:
        word, least, most = "undesirable_weight", undesirable_weight * ratio / high, undesirable_weight * ratio / low
    weigh = agreeing(good, "weighs", "weigh")
    return (
        f"{counted(good, 'good row')} {weigh} {ratio:.3g} times as much as {counted(bad, 'bad one')}, arXiv:2402.01306 "
        f"advises {low:g} to {high:g}: set train.{word} between {least:.3g} and {most:.3g}"
    )


def _set_margin(sums: dict[str, list[float]]) -> None:
    """Set the logged margin to the difference of the mean rewards: trl's omits micro-batches of one label."""
    good, bad = sums.get("rewards/chosen"), sums.get("rewards/rejected")
    if good and bad:
        sums["rewards/margins"] = [sum(good) / len(good) - sum(bad) / len(bad)]


def _mismatched(
    rows: Sequence[dict[str, Any]], pool: Sequence[dict[str, Any]], max_length: int, seed: int
) -> list[dict[str, Any]]:
    """Return each row with a mismatched response, one from ``pool`` to another prompt, truncated to ``max_length``.

    Raises:
        PipelineError: all rows of the pool have the same prompt.
    """
    rng = random.Random(f"{seed}/matched")
    mismatched = []
    for row in rows:
        drawn = rng.randrange(len(pool))
        following = (pool[(drawn + step) % len(pool)] for step in range(len(pool)))
        other = next((one for one in following if one["prompt_ids"] != row["prompt_ids"]), None)
        if other is None:
            statement = "all rows have the same prompt"
            raise PipelineError(Problem(statement, "at least two: responses to one are held against those to another"))
        room = max_length - len(row["prompt_ids"])
        mismatched.append({**row, "KL_completion_ids": other["completion_ids"][:room]})
    return mismatched
