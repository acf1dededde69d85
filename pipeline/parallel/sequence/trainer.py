"""Sequence parallelism in a transformers or trl trainer: what `compute.sequence_parallel` changes.

The loss of a step is the sum over all shards divided by the number of labels that count in the full batch. So shards
with few of them, or none, have the right weight; transformers' own loss for DeepSpeed's shards is a mean per
micro-batch. Held-out rows are sharded too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.data_loader import prepare_data_loader
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from pipeline.errors import PipelineError, Problem
from pipeline.labels import IGNORE
from pipeline.parallel.ranks import Ranks
from pipeline.parallel.sequence.attention import PROBE_ROUNDING, SequenceShard, UlyssesAttention

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from torch import nn
    from transformers import PreTrainedConfig, TrainingArguments


def sequence_shard_of(trainer: Trainer) -> SequenceShard:
    """Return this rank's shard of every row; the full row without sequence parallelism."""
    config = trainer.accelerator.parallelism_config
    return SequenceShard.of(Ranks.current(), int(config.sp_size) if config is not None and config.sp_enabled else 1)


def sharded_loader(trainer: Trainer, loader: DataLoader[Any]) -> DataLoader[Any]:
    """Prepare a data loader such that all ranks of a sequence-parallel group get the same micro-batches."""
    accelerator, shard = trainer.accelerator, sequence_shard_of(trainer)
    if shard.count == 1:
        return accelerator.prepare(loader)  # type: ignore[no-any-return]
    sharded: DataLoader[Any] = prepare_data_loader(
        loader,
        accelerator.device,
        num_processes=shard.groups,
        process_index=shard.group,
        put_on_device=True,
        rng_types=accelerator.rng_types.copy(),
        even_batches=False,
        non_blocking=accelerator.non_blocking,
    )
    return sharded


def collator(trainer: Trainer) -> Callable[[list[Any]], Any]:
    """Return a collator for training: of full rows, or of this rank's shards of them."""
    collate: Any = trainer.data_collator
    shard = sequence_shard_of(trainer)
    if shard.count == 1:
        return collate  # type: ignore[no-any-return]
    return lambda rows: shard.batch(collate(rows), collate.pad_id)


def held_out_batches(rows: int, size: int, shard: SequenceShard) -> Iterator[tuple[int, list[int], int]]:
    """Yield a group's batches of held-out rows: index among all batches, row indices, and weight in rows.

    All groups get the same number of batches, because all must run at the same time. A group without a batch left
    repeats another one with weight 0.
    """
    batches = [list(range(start, min(start + size, rows))) for start in range(0, rows, size)]
    for first in range(0, len(batches), shard.groups):
        index = first + shard.group
        if index < len(batches):
            yield index, batches[index], len(batches[index])
        else:
            yield index, batches[first], 0


def mean_by_rows(parts: Sequence[tuple[int, int, float, int]]) -> float:
    """Return the mean loss of batches, weighted by their rows.

    Args:
        parts: for each shard of each batch: the batch's index, its rows, the sum of the loss, and the labels in it.
    """
    batches: dict[int, list[float]] = {}
    for index, rows, loss, tokens in parts:
        sums = batches.setdefault(index, [float(rows), 0.0, 0.0])
        sums[1] += loss
        sums[2] += tokens
    total = sum(rows for rows, _, _ in batches.values())
    return sum(rows * loss / max(tokens, 1.0) for rows, loss, tokens in batches.values()) / total


@contextmanager
def _with_kv_heads(config: PreTrainedConfig) -> Iterator[None]:
    """Inside the context, set `num_key_value_heads`, which DeepSpeed needs, on a configuration that lacks it."""
    is_new = not hasattr(config, "num_key_value_heads")
    if is_new:
        config.num_key_value_heads = config.num_attention_heads
    try:
        yield
    finally:
        if is_new:
            del config.num_key_value_heads


class SequenceParallelTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer with sequence parallelism; unchanged without it. A base class of trl's trainers."""

    train_rows: Sequence[Mapping[str, Any]]
    _exchange: UlyssesAttention
    _evaluates = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if sequence_shard_of(self).count > 1:
            # Normalise the loss by `num_items_in_batch`, which transformers does not do for shards.
            self.model_accepts_loss_kwargs = True

    def get_sp_size(self) -> int:
        """Return 1: batches are already sharded, and each label is on one rank only."""
        return 1

    def get_total_train_batch_size(self, args: TrainingArguments) -> int:
        """Return the rows per optimizer step; the ranks of a group count once."""
        return int(super().get_total_train_batch_size(args)) // sequence_shard_of(self).count

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return a shard's part of the loss, times the number that DeepSpeed divides the gradient sum by."""
        shard = sequence_shard_of(self)
        if shard.count == 1 or not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        loss = outputs.loss * self._divisor
        return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Return the number of labels over all ranks; None in evaluation, where a shard's loss is a mean."""
        return None if self._evaluates else super()._get_num_items_in_batch(batch_samples, device)

    @property
    def _divisor(self) -> int:
        """What DeepSpeed divides the gradient sum by: the number of groups for ZeRO-1 and 2, of ranks for ZeRO-3.

        `__avg_scatter_grads` in DeepSpeed's `stage3.py` ignores sequence parallelism, unlike the other stages.
        """
        shard = sequence_shard_of(self)
        stage = int(self.accelerator.state.deepspeed_plugin.zero_stage)
        return shard.groups * (shard.count if stage == 3 else 1)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return a loss whose mean over all ranks is that of the batch."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        return loss if sequence_shard_of(self).count == 1 else loss * Ranks.current().count / self._divisor

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Return the loss of held-out rows: the mean over batches weighted by rows, as transformers on one process.

        Only the dataset of the loader is used, whose batches are not sharded. With several groups, trl's other metrics
        are averaged over the groups' batches, as in data parallelism.
        """
        shard = sequence_shard_of(self)
        if shard.count == 1:
            return super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        held_out: Any = dataloader.dataset
        self.model_wrapped.eval()
        self._evaluates, losses = True, []
        for index, rows, weight in held_out_batches(len(held_out), self.args.eval_batch_size, shard):
            batch = shard.batch(self.data_collator([held_out[row] for row in rows]), self.data_collator.pad_id)
            self._exchange.expect(len(rows))
            loss, _, _ = self.prediction_step(self.model_wrapped, batch, True)
            counted = int((batch["labels"] != IGNORE).sum())  # the loss of a shard without labels is NaN
            losses.append((index, weight, float(loss) * counted if counted else 0.0, counted))
        self._exchange.expect(self.args.per_device_train_batch_size)
        self._evaluates = False
        loss = mean_by_rows(Ranks.current().all_gather(losses))
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_loss": loss}, len(held_out))

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        shard = sequence_shard_of(self)
        if shard.count == 1:
            return super()._prepare_for_training(*args, **kwargs)
        with _with_kv_heads(self.model.config.get_text_config()):
            model, loader = super()._prepare_for_training(*args, **kwargs)
        kernel = self.accelerator.parallelism_config.sp_handler.sp_attn_implementation
        if int(self.accelerator.state.deepspeed_plugin.zero_stage) == 3:
            self._register_head()
        self._exchange = self._probed(model, kernel, shard)
        return model, loader.dl  # `sharded_loader` has already sharded the batches

    def _register_head(self) -> None:
        """Register the output layer's weight as an external parameter of the model, because trl's loss reads it there.

        DeepSpeed detects such a read only if the weight is not gathered at that moment. After the probe it is, because
        DeepSpeed prefetches it for the layer that read it in the probe, and it is released before its gradient arrives.
        """
        from deepspeed.runtime.zero import register_external_parameter  # optional extra `deepspeed`

        causal = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        for parameter in causal.get_output_embeddings().parameters(recurse=False):
            register_external_parameter(causal, parameter)

    def _probed(self, engine: DeepSpeedEngine, kernel: str, shard: SequenceShard) -> UlyssesAttention:
        """Probe DeepSpeed's exchange and return it: sharded rows must give the same logits as full rows.

        Raises:
            PipelineError: the logits differ, or the exchange does not support the model's attention.
        """
        remedy = "set compute.sequence_parallel: 1 for this stage"
        try:
            exchange = UlyssesAttention(kernel, shard, is_packed="seq_lengths" in self.train_rows[0])
            difference = exchange.difference(engine)
        except (RuntimeError, AssertionError) as error:
            name, why = type(self.model).__name__, " ".join(str(error).split())
            problem = Problem(f"{name} does not compute from parts of rows: {why}", "attention that does", remedy)
            raise PipelineError(problem) from error
        if not difference <= PROBE_ROUNDING[next(engine.module.parameters()).dtype]:
            statement = (
                f"logits of rows shared by {shard.count} processes differ by {difference:.0e} from those of whole rows"
            )
            raise PipelineError(Problem(statement, "full causal attention in every layer", remedy))
        return exchange
