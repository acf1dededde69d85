"""Direct preference optimisation (DPO): align the policy to preference pairs without a reward model, with trl.

Reference: Rafailov et al. 2023, equation 7. `train: {loss_type: NAME}` takes any loss of trl (`LOSSES` has their
papers), or a list of losses that are summed with `loss_weights`; the meaning of `beta` depends on the loss.

The reference model is the model the stage starts from (with LoRA: the adapter disabled). Its log-probabilities are
computed once, in length buckets, and saved for a resumed run. Its weights are not in memory during training.
"""

from __future__ import annotations

import functools
import time
from typing import Annotated, Any, ClassVar

from pydantic import Field

from pipeline.errors import PipelineError, Problem, counted
from pipeline.models.adapter_config import Adapter
from pipeline.stage import Data, Input, StageConfig, StageContext, StageResult, stage
from pipeline.training.fields import CommonTrain, unknown_word

LOSSES = {
    "sigmoid": "DPO, arXiv:2305.18290",
    "hinge": "SLiC, arXiv:2305.10425",
    "ipo": "IPO, arXiv:2310.12036; beta is its τ",
    "exo_pair": "EXO, arXiv:2402.00856; wants label_smoothing above 0",
    "nca_pair": "NCA, arXiv:2402.05369",
    "robust": "robust DPO, arXiv:2403.00409; wants label_smoothing below 0.5",
    "bco_pair": "BCO, arXiv:2404.04656",
    "sppo_hard": "SPPO, arXiv:2405.00675",
    "aot": "AOT, arXiv:2406.05882",
    "aot_unpaired": "AOT, unpaired, arXiv:2406.05882",
    "apo_zero": "APO, arXiv:2408.06266; for pairs better than the model's own answers",
    "apo_down": "APO, arXiv:2408.06266; for pairs worse than the model's own answers",
    "discopop": "DiscoPOP, arXiv:2406.08414",
    "sft": "cross-entropy of the chosen response alone, to be added to another loss",
    "sigmoid_norm": "DPO with log-probabilities per token, as in TÜLU 3, arXiv:2411.15124",
}
"""Losses of trl's DPOTrainer and their papers."""


class Train(CommonTrain):
    """`train:` of DPO; other keys are fields of trl's DPOConfig.

    Attributes:
        beta: strength of the pull towards the reference (β of equation 7).
        loss_type: a loss of `LOSSES`, or a list of them.
    """

    trainer: ClassVar[str] = "DPOConfig"
    learning_rate: float = Field(default=1e-6, gt=0)
    beta: float = Field(default=0.1, gt=0)
    loss_type: str | list[str] = "sigmoid"

    def check(self) -> list[Problem]:
        """Return contradictions between fields, and losses trl does not have."""
        names = [self.loss_type] if isinstance(self.loss_type, str) else self.loss_type
        problems = [
            *super().check(),
            *(unknown_word("loss_type", name, LOSSES) for name in names if name not in LOSSES),
        ]
        weights = self.passthrough().get("loss_weights")
        if weights is not None and len(weights) != len(names):
            # `train.loss_type` is named, so that nothing is said of its default where its value is wrong.
            statement = (
                f"{len(weights)} train.loss_weights for {counted(len(names), 'loss', 'losses')} of train.loss_type"
            )
            problems.append(Problem(statement, "one for each"))
        return problems


class Config(StageConfig):
    """Configuration of a DPO stage.

    Attributes:
        data: preference pairs.
        model: the policy's start and its reference.
        adapter: LoRA instead of full fine-tuning.
        train: how to train.
    """

    data: Annotated[str, Data("preference")]
    model: Annotated[str, Input(external=True)]
    adapter: Adapter | None = None
    train: Train = Train()

    def check(self) -> list[Problem]:
        """Return contradictions in `train`."""
        return self.train.check()


@stage("dpo", version=2, config=Config, makes="model", parallel=True)
def run(ctx: StageContext, config: Config) -> StageResult:
    """Optimise the policy on preference pairs."""
    from datasets import Dataset
    from transformers import set_seed
    from trl import DPOConfig, DPOTrainer

    from pipeline.models.adapters import lora_config
    from pipeline.models.load import load_causal_lm, load_tokenizer
    from pipeline.parallel.consolidation import consolidated_model
    from pipeline.training.arguments import build_arguments, prepare_torch, starting_weights
    from pipeline.training.batches import Batches, BucketedBatches
    from pipeline.training.distribution import divided
    from pipeline.training.encode import encode_pairs
    from pipeline.training.encoded import encode_source
    from pipeline.training.finish import finish, save_trained
    from pipeline.training.fitting import context_length, fit
    from pipeline.training.loop import run_trainer, steps_of
    from pipeline.training.reference import OwnReference, unhashed, with_reference

    class BucketedDPOTrainer(OwnReference, BucketedBatches, DPOTrainer):  # type: ignore[misc]
        """trl's DPOTrainer on tokenized rows, with bucketed batches, also for the reference log-probabilities."""

        def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
            return dataset

        def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
            columns = {"ref_chosen_logps": "chosen_ids", "ref_rejected_logps": "rejected_ids"}
            return with_reference(ctx, self.model, dataset, columns, ctx.work / f"reference-{name}.json")

    prepare_torch(ctx)
    set_seed(ctx.seed)
    train, source = config.train, ctx.input("model")
    tokenizer = load_tokenizer(source, ctx.trust_remote_code)
    weights = starting_weights(ctx, config.adapter)
    model = load_causal_lm(source, trust_remote_code=ctx.trust_remote_code, **weights)
    fit(ctx, model, tokenizer, weights)
    max_length = context_length(model, train.max_length)
    rows = ctx.load_rows("data")
    encode = functools.partial(encode_pairs, tokenizer)
    encoded_source = encode_source(ctx, "data", rows, encode, what="pairs", max_length=max_length)
    encoded, held_out = encoded_source.train.rows, encoded_source.held_out.rows
    if not encoded:
        raise PipelineError(Problem("no pair fits", f"pairs of at most {max_length} tokens", "raise train.max_length"))
    dropped = len(encoded_source.train.too_long)
    lengths = [2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in encoded]
    micro_batch = divided(ctx, train.batch_size, max(lengths), "pairs").micro_batch
    batches = Batches(lengths, train.batch_size, micro_batch, ctx.seed)
    steps = steps_of(batches, train.epochs, train.max_steps)
    arguments = build_arguments(
        DPOConfig,
        ctx,
        train,
        micro_batch=micro_batch,
        steps=steps,
        has_held_out=bool(held_out),
        beta=train.beta,
        loss_type=train.loss_type,
        max_length=None,
        precompute_ref_log_probs=True,
    )
    ctx.phase("reference log-probabilities")
    started = time.perf_counter()
    with unhashed(DPOTrainer):
        trainer = BucketedDPOTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(encoded),
            eval_dataset=Dataset.from_list(held_out) if held_out else None,
            processing_class=tokenizer,
            peft_config=lora_config(config.adapter, "causal", model) if config.adapter else None,
        )
    scoring_s = time.perf_counter() - started
    trainer.train_rows, trainer.batches = trainer.train_dataset.to_list(), batches
    ctx.phase(f"training on {counted(len(encoded), 'pair')}")
    trained = run_trainer(ctx, trainer, batches, steps, config.adapter)
    seen = [[*row["prompt_ids"], *row["chosen_ids"]] for row in encoded[:3]]
    lineage = save_trained(ctx, consolidated_model(trainer), tokenizer, source, config.adapter, seen)
    accuracy = trained.metrics.get("eval_rewards/accuracies", trained.metrics.get("rewards/accuracies", 0.0))
    return finish(
        ctx,
        trained,
        metrics={},
        rows={**encoded_source.counts, "dropped": dropped},
        lineage=lineage,
        summary=f"implicit reward prefers the chosen response in {accuracy:.1%} of pairs",
        scoring_seconds=scoring_s,
    )
