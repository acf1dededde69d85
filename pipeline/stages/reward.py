"""Reward model: learn which of two responses people prefer, with trl's RewardTrainer, and say how far to trust it.

Reference: Ouyang et al. 2022 (InstructGPT), equation 1 (Bradley-Terry); the margin is that of Touvron et al. 2023
(Llama 2), equation 2. The held-out report has accuracy, calibration, margins, and the effect of length.
"""

from __future__ import annotations

import functools
import json
import time
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from pipeline.errors import PipelineError, Problem, agreeing, counted
from pipeline.evaluation.judging import accuracy_summary
from pipeline.models.adapter_config import Adapter
from pipeline.stage import Data, Input, StageConfig, StageContext, StageResult, stage
from pipeline.training.fields import CommonTrain, margin_problem

if TYPE_CHECKING:
    from pipeline.training.encode import EncodedRows


class Train(CommonTrain):
    """`train:` of a reward model; other keys are fields of trl's RewardConfig.

    Attributes:
        use_margin: whether a row's `margin` enters the loss.
    """

    trainer: ClassVar[str] = "RewardConfig"
    learning_rate: float = Field(default=1e-5, gt=0)
    use_margin: bool = False


class Config(StageConfig):
    """Configuration of a reward-model stage.

    Attributes:
        data: preference pairs.
        test: held-out pairs for the report; default are those the data source splits off.
        model: what to start from.
        group_by: column to report accuracy by. Columns `gold_chosen` and `gold_rejected`, where the rows have them,
            are true scores: agreement with them is reported.
        adapter: LoRA instead of full fine-tuning.
        train: how to train.
    """

    data: Annotated[str, Data("preference")]
    test: Annotated[str | None, Data("preference")] = None
    model: Annotated[str, Input(external=True)]
    group_by: str | None = None
    adapter: Adapter | None = None
    train: Train = Train()

    def check(self) -> list[Problem]:
        """Return contradictions in `train`."""
        return self.train.check()


@stage("reward", version=2, config=Config, makes="reward", parallel=True)
def run(ctx: StageContext, config: Config) -> StageResult:
    """Train the reward model and write its report on held-out pairs."""
    from datasets import Dataset
    from transformers import set_seed
    from trl import RewardConfig, RewardTrainer

    from pipeline.models.adapters import lora_config
    from pipeline.models.contract import end_ids
    from pipeline.models.fitting import separate_padding
    from pipeline.models.load import load_reward_model, load_tokenizer
    from pipeline.parallel.consolidation import consolidated_model
    from pipeline.training.arguments import build_arguments, prepare_torch, starting_weights
    from pipeline.training.batches import Batches, BucketedBatches
    from pipeline.training.collate import PairCollator
    from pipeline.training.distribution import divided
    from pipeline.training.encode import encode_pairs
    from pipeline.training.encoded import encode_source
    from pipeline.training.finish import finish, save_trained
    from pipeline.training.fitting import context_length, fit
    from pipeline.training.loop import run_trainer, steps_of

    class BucketedRewardTrainer(BucketedBatches, RewardTrainer):  # type: ignore[misc]
        """trl's RewardTrainer on bucketed batches."""

    prepare_torch(ctx)
    set_seed(ctx.seed)
    train, source = config.train, ctx.input("model")
    tokenizer = load_tokenizer(source, ctx.trust_remote_code)
    note = separate_padding(tokenizer, end_ids(tokenizer))
    if note:
        ctx.note(note)
    weights = starting_weights(ctx, config.adapter)
    model = load_reward_model(source, tokenizer, seed=ctx.seed, trust_remote_code=ctx.trust_remote_code, **weights)
    fit(ctx, model, tokenizer, weights)
    max_length = context_length(model, train.max_length)
    rows = ctx.load_rows("data")
    encode = functools.partial(encode_pairs, tokenizer, scored=True)
    encoded_source = encode_source(ctx, "data", rows, encode, what="pairs", max_length=max_length)
    encoded = _sequences(encoded_source.train, rows.train, use_margin=train.use_margin)
    held_out, test_rows = _sequences(encoded_source.held_out, rows.held_out, use_margin=False), rows.held_out
    if config.test:
        tests = ctx.load_rows("test")
        test_rows = tests.train
        tested = encode_source(ctx, "test", tests, encode, what="pairs to test", max_length=max_length)
        held_out = _sequences(tested.train, test_rows, use_margin=False)
        if rows.held_out:
            are = agreeing(len(rows.held_out), "is", "are")
            ctx.note(
                f"{counted(len(rows.held_out), 'held-out pair')} of `data` {are} not used: the report is of `test`"
            )
    if not encoded:
        raise PipelineError(Problem("no pair fits", f"pairs of at most {max_length} tokens", "raise train.max_length"))
    dropped = len(encoded_source.train.too_long)
    lengths = [len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in encoded]
    micro_batch = divided(ctx, train.batch_size, max(lengths), "pairs").micro_batch
    batches = Batches(lengths, train.batch_size, micro_batch, ctx.seed)
    steps = steps_of(batches, train.epochs, train.max_steps)
    arguments = build_arguments(
        RewardConfig,
        ctx,
        train,
        micro_batch=micro_batch,
        steps=steps,
        has_held_out=bool(rows.held_out) and bool(held_out) and not config.test,
        max_length=None,
        liger_kernel_config={"fused_linear_cross_entropy": False},  # a reward head has no vocabulary logits to fuse
    )
    columns = ("chosen_ids", "rejected_ids")
    set_seed(arguments.seed)  # as the trainer will: a sharded adapter is initialised from this random state
    trainer = BucketedRewardTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([{key: row[key] for key in columns} for row in encoded]),
        eval_dataset=Dataset.from_list([{key: row[key] for key in columns} for row in held_out]) if held_out else None,
        processing_class=tokenizer,
        data_collator=PairCollator(tokenizer.pad_token_id),
        peft_config=lora_config(config.adapter, "reward", model) if config.adapter else None,
    )
    trainer.train_rows, trainer.batches = encoded, batches
    ctx.phase(f"training on {counted(len(encoded), 'pair')}")
    trained = run_trainer(ctx, trainer, batches, steps, config.adapter)
    consolidated = consolidated_model(trainer)
    lineage = save_trained(
        ctx, consolidated, tokenizer, source, config.adapter, [row["chosen_ids"] for row in encoded[:3]]
    )
    started = time.perf_counter()
    metrics = _report(ctx, config, consolidated, tokenizer, held_out) if held_out and consolidated is not None else {}
    scoring_s = time.perf_counter() - started
    shown = accuracy_summary(metrics)
    if "gold_agreement" in metrics:
        shown += f", {metrics['gold_agreement']:.1%} agreement with gold"
    return finish(
        ctx,
        trained,
        metrics=metrics,
        rows={**encoded_source.counts, "held_out": len(test_rows), "dropped": dropped},
        lineage=lineage,
        summary=shown,
        scoring_seconds=scoring_s,
    )


def _sequences(encoded_rows: EncodedRows, rows: list[dict[str, Any]], *, use_margin: bool) -> list[dict[str, Any]]:
    """Return the full sequences (prompt and response) of encoded pairs, each with its row.

    Raises:
        PipelineError: margins are used, and rows lack them.
    """
    encoded = []
    for i, one in zip(encoded_rows.kept, encoded_rows.rows, strict=True):
        prompt, row = one["prompt_ids"], rows[i]
        pair: dict[str, Any] = {f"{side}_ids": [*prompt, *one[f"{side}_ids"]] for side in SIDES}
        pair |= {"row": row, "prompt_tokens": len(prompt)}
        if use_margin and row.get("margin") is not None:
            pair["margin"] = float(row["margin"])
        encoded.append(pair)
    margins = sum("margin" in pair for pair in encoded)
    problem = margin_problem(len(encoded), margins) if use_margin else None
    if problem is not None:
        raise PipelineError(problem)
    return encoded


def _report(
    ctx: StageContext, config: Config, model: Any, tokenizer: Any, held_out: list[dict[str, Any]]
) -> dict[str, float]:
    """Score the held-out pairs and write the report card; return its main figures."""
    from pipeline.evaluation.reward_card import build_card, write_card
    from pipeline.models.scoring import score
    from pipeline.training.arguments import precision_of

    ctx.phase(f"scoring {counted(len(held_out), 'held-out pair')}")
    scored = functools.partial(score, model, pad_id=tokenizer.pad_token_id, precision=precision_of(ctx))
    sides = {side: scored([row[f"{side}_ids"] for row in held_out]) for side in SIDES}
    rows = [row["row"] for row in held_out]
    gold = _gold_of(rows)
    with (ctx.out / "held_out_scores.jsonl").open("w", encoding="utf-8") as file:
        for i, row in enumerate(rows):
            shown = {"prompt": row["prompt"], **{side: row[side] for side in SIDES}}
            shown |= {f"{side}_score": round(sides[side][i], 6) for side in SIDES}
            file.write(json.dumps(shown, ensure_ascii=False, sort_keys=True) + "\n")
    card = build_card(
        chosen=sides["chosen"],
        rejected=sides["rejected"],
        chosen_lengths=[len(row["chosen_ids"]) - row["prompt_tokens"] for row in held_out],
        rejected_lengths=[len(row["rejected_ids"]) - row["prompt_tokens"] for row in held_out],
        groups=[str(row.get(config.group_by, "")) for row in rows] if config.group_by else None,
        gold_chosen=gold.get("chosen"),
        gold_rejected=gold.get("rejected"),
        seed=ctx.seed,
    )
    return write_card(card, ctx.out)


SIDES = ("chosen", "rejected")


def _gold_of(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the true scores (`gold_chosen`, `gold_rejected`) by side; empty unless every row has both."""
    if not all(row.get(f"gold_{side}") is not None for row in rows for side in SIDES):
        return {}
    return {side: [float(row[f"gold_{side}"]) for row in rows] for side in SIDES}
