"""A trl trainer that samples: its prompts, its rewards' learning signal, and its rollouts in checkpoints."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from pipeline.models.generate.decode import GenerationSettings
from pipeline.models.generate.engines.engine import Engine
from pipeline.models.generate.sampling import Sampling
from pipeline.models.load.fitting import fit_embedding
from pipeline.parallel.fsdp import wrapping as fsdp
from pipeline.parallel.ranks import Ranks
from pipeline.rl.on_policy.learning import RewardWatch
from pipeline.rl.on_policy.trainer import PromptBatches, Prompts
from pipeline.stage import StageContext
from pipeline.training.composition import TrainerHooks, TrainerParts
from pipeline.training.data.batch_loader import BatchLoader
from pipeline.training.data.padding import with_position_ids

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, Trainer

    from pipeline.models.tokenizer.template import Messages

ROLLOUTS_FILE = "rollouts-{rank}-of-{count}.pt"
"""File in a checkpoint with the sampled responses that were not yet trained on."""
REFERENCE_FILE = "reference.pt"
"""File in a checkpoint with the weights of a reference that follows the policy (`sync_ref_model`)."""
_MOST_PLACES = 1 << 20
"""More than the responses of a rollout: a row id is made of a prompt and a place."""
WATCH_FILE = "reward_watch.json"
"""File in a checkpoint with the counts of rollouts with and without a learning signal."""


@dataclass
class Rollouts:
    """Part of a trl trainer that samples: knows its prompts, watches its rewards, and saves its rollouts.

    A checkpoint may fall between two steps that train on the same responses, and trl would sample new ones after a
    resume. Saving them makes a resumed run end with the same bits.

    Attributes:
        ctx: the stage's context.
        prompts: the prompts of the stage.
        batches: batch sampler of the prompts.
        watch: counts rollouts with and without a learning signal.
        engine: samples the responses; None leaves that to trl.
    """

    ctx: StageContext
    prompts: Prompts
    batches: PromptBatches
    watch: RewardWatch = field(default_factory=RewardWatch)
    engine: Engine | None = None
    _asked: list[int] = field(default_factory=list)

    def parts(self) -> RolloutParts:
        """Return the parts of a trainer that samples."""
        base = TrainerParts.of(BatchLoader(self.batches, self.prompts.train_rows), saved=[self])
        return RolloutParts(base.batches, base.sharding, base.checkpoints, rollouts=self)

    def fit_reference(self, trainer: Trainer) -> None:
        """Resize the embedding of the reference, which trl loads from the files, as the policy's was."""
        if trainer.ref_model is not None:
            fit_embedding(_reference(trainer), trainer.processing_class)

    def tokenize(self, prompts: list[Messages]) -> list[list[int]]:
        """Return the tokens of prompts as trl shows them, and remember which prompts these are."""
        shown = [turns[0]["content"] for turns in prompts]
        self._asked = [self.prompts.numbers[text] for text in shown]
        return [list(self.prompts.prompt_ids[number]) for number in self._asked]

    def sample(self, trainer: Trainer, model: PreTrainedModel | PeftModel, ids: list[list[int]]) -> list[list[int]]:
        """Sample one response to each prompt that was tokenized last, with the engine.

        The random numbers depend on the seed, the number of the rollout, the prompt, and the place in the rollout of
        all ranks: neither on the number of ranks nor on where a run was resumed.
        """
        assert self.engine is not None
        args, rank = trainer.args, Ranks.current().index
        rollout = trainer._step // (args.steps_per_generation * args.num_iterations)
        sampling = Sampling(temperature=args.temperature, top_k=args.top_k or 0, top_p=args.top_p)
        settings = GenerationSettings(
            args.max_completion_length,
            list(trainer.eos_token_ids),
            trainer.processing_class.pad_token_id,
            sampling,
            self.ctx.seed * 1_000_003 + 2 * rollout + (not trainer.model.training),
        )
        first = rank * len(ids)
        row_ids = [number * _MOST_PLACES + first + i for i, number in enumerate(self._asked)]
        return self.engine(model, ids, settings, row_ids).responses

    def look(self, trainer: Trainer, rewards_NF: Tensor) -> None:
        """Check the rewards of a rollout for a learning signal.

        Args:
            trainer: the trainer.
            rewards_NF: the reward of each response by each function, NaN without one.

        Raises:
            PipelineError: too many consecutive rollouts had no learning signal.
        """
        weighted_NF = rewards_NF * trainer.reward_weights.to(rewards_NF.device)
        rewards_N = weighted_NF.nansum(dim=1).masked_fill(torch.isnan(rewards_NF).all(dim=1), torch.nan)
        self.watch.look(rewards_N, self.batches.group, self.ctx)

    def save(self, trainer: Trainer, folder: Path) -> None:
        """Write the rollouts that are still trained on, a reference that follows the policy, and the watch."""
        if self.batches.repeats > trainer.args.gradient_accumulation_steps:
            torch.save(trainer._buffered_inputs, folder / _rollouts_file())
        if Ranks.current().is_first:
            (folder / WATCH_FILE).write_text(json.dumps(self.watch.plain()), encoding="utf-8")
            if trainer.args.sync_ref_model:
                torch.save(_reference(trainer).state_dict(), folder / REFERENCE_FILE)

    def load(self, trainer: Trainer, folder: Path) -> None:
        """Load what `save` wrote, and the position in the rollouts."""
        trainer._step = int(trainer.state.global_step) * trainer.args.gradient_accumulation_steps
        self.watch = RewardWatch(**json.loads((folder / WATCH_FILE).read_text(encoding="utf-8")))
        rollouts = folder / _rollouts_file()  # absent for another number of processes, which samples again
        if rollouts.is_file():
            trainer._buffered_inputs = torch.load(rollouts, map_location=trainer.args.device, weights_only=True)
        if trainer.args.sync_ref_model:
            _reference(trainer).load_state_dict(torch.load(folder / REFERENCE_FILE, "cpu", weights_only=True))
        if getattr(trainer, "use_adaptive_entropy", False):  # with FSDP trl's own loading of it is bypassed
            known = json.loads((folder / "entropy_ctrl_state.json").read_text(encoding="utf-8"))
            trainer.entropy_coef, trainer._last_world_entropy = known["entropy_coef"], known["last_world_entropy"]


@dataclass(frozen=True, kw_only=True)
class RolloutParts(TrainerParts):
    """The parts of a trainer that samples.

    Attributes:
        rollouts: its prompts and rollouts.
    """

    rollouts: Rollouts


class OnPolicyHooks(TrainerHooks):
    """The replaced methods of trl's trainers that sample, beside those of every trainer."""

    parts: RolloutParts
    model_wrapped: Any
    accelerator: Any

    def _tokenize_prompts(self, prompts: list[Messages]) -> tuple[list[list[int]], None, dict[str, object]]:
        """Return the encoded prompts; trl's own tokenization would parse control tokens that content spells."""
        return self.parts.rollouts.tokenize(prompts), None, {}

    def _get_per_token_logps_and_entropies(self, model: PreTrainedModel | PeftModel, *args: Any, **kwargs: Any) -> Any:
        """Compute log-probabilities at the positions that responses were sampled at."""
        with with_position_ids(model) if self.parts.rollouts.prompts.with_positions else nullcontext():
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)  # type: ignore[misc]

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        """Sample; with FSDP2 all weights are gathered once instead of for every token.

        GRPO gets the log-probabilities of the engine too, which are None if they are the model's own.
        """
        rollouts, given = self.parts.rollouts, self.args
        with fsdp.unsharded(self.model):
            if rollouts.engine is None:
                return super()._generate_single_turn(prompt_ids, *args, **kwargs)  # type: ignore[misc]
            with unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=given.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=given.gradient_checkpointing_kwargs,
            ) as model:
                responses = rollouts.sample(self, model, prompt_ids)
        return (responses, None) if isinstance(self, GRPOTrainer) else responses

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute rewards; in training, check them for a learning signal."""
        rewards_NF: Tensor = super()._calculate_rewards(*args, **kwargs)  # type: ignore[misc]
        if self.model.training:
            self.parts.rollouts.look(self, rewards_NF)
        return rewards_NF


def _reference(trainer: Trainer) -> Any:
    """Return the reference that follows the policy, which is not sharded."""
    return trainer.accelerator.unwrap_model(trainer.ref_model)


def _rollouts_file() -> str:
    ranks = Ranks.current()
    return ROLLOUTS_FILE.format(rank=ranks.index, count=ranks.count)
