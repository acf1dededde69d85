"""Records a PPO run while it trains: metrics, held-out answers, the best weights, checkpoints, trackers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from pipeline.errors import ExitCode, PipelineError, Problem
from pipeline.evaluation.curves.loss_curve import metric_rows, write_curve
from pipeline.evaluation.curves.training_curves import draw_training
from pipeline.models.forward_probe import ForwardProbe
from pipeline.plain_data import JsonObject
from pipeline.rl.ppo.state import load_weights, save_state, save_weights
from pipeline.rl.ppo.trainer import PPOTrainer
from pipeline.rl.rollout.episodes import Episode
from pipeline.stage import StageContext, StageResult
from pipeline.training.arguments import precision_of
from pipeline.training.audit import check_first_pass
from pipeline.training.session import Session

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


SAMPLES, TOLD = 8, 2
"""Held-out answers recorded at each evaluation, and the number of them shown to the user."""
MOST_SKIPPED = 100
"""Most responses of skipped optimizer steps that are recorded."""
MetricRow = dict[str, float]
"""The metrics of an iteration by name, with its `step`."""
SHOWN = ("reward", "kl", "entropy", "length", "eos_rate", "explained_variance")


class RunLog:
    """Records a run: metrics, held-out samples, the best weights, and periodic checkpoints."""

    session: Session

    def __init__(self, ctx: StageContext, trainer: PPOTrainer, tokenizer: PreTrainedTokenizerBase) -> None:
        self.ctx, self.trainer, self.tokenizer = ctx, trainer, tokenizer
        self.rows: list[MetricRow] = []
        self.samples: list[JsonObject] = []
        self.skipped: list[JsonObject] = []
        self.notes: list[str] = []
        self.best: dict[str, float] = {}
        self.tokens = 0.0
        self.resumed_at: int | None = None
        self.trackers = Trackers(ctx, trainer.settings)
        trainer.on_skip = self.skip

    def restore(self, extra: JsonObject) -> None:
        """Restore the records of a saved run, whose state the trainer has loaded."""
        self.resumed_at = self.trainer.iteration
        self.rows, self.samples, self.notes = extra["rows"], extra["samples"], extra["notes"]
        self.best, self.tokens, self.skipped = extra["best"], extra["tokens"], extra["skipped"]

    def watch(self, trainer: PPOTrainer) -> None:
        """Train to the end.

        Raises:
            Interrupted: the user asked to stop; the state was saved.
            Stopped: a guard ended the run.
        """
        try:
            self._watch(trainer)
        finally:  # trackers write their last rows, however the run ends
            self.trackers.close()

    def _watch(self, trainer: PPOTrainer) -> None:
        total = trainer.settings.iterations
        self.session = Session(self.ctx, total, resumed_at=self.resumed_at, unit="iteration")
        self.session.start()
        if not self.rows:
            self.evaluate({"step": 0})
        first: ForwardProbe | None = ForwardProbe(trainer.policy.model)
        for metrics in trainer.iterations():
            if first is not None:
                check_first_pass(self.ctx, first, precision_of(self.ctx))
                first = None
            done = trainer.iteration
            self.tokens += metrics["tokens"]
            row = {"step": done, **metrics}
            for text in trainer.guards.look(metrics, trainer.settings, done - 1, trainer.kl):
                self.note(text)
            if done % trainer.settings.eval_every == 0 or done == total:
                self.evaluate(row)
            else:
                self.keep(row)
            self.ctx.progress(done, total, **{name: row[name] for name in SHOWN if name in row})
            self.save_when_due(done)

    def evaluate(self, row: MetricRow) -> None:
        """Add held-out metrics to a row, record and show some answers, and save the policy if it is the best so far.

        Raises:
            Stopped: the watched score falls while the reward rises.
        """
        with self.trainer.saved_policy():
            metrics, episodes = self.trainer.evaluate()
            row.update(metrics)
            self.keep(row)
            key = f"eval_{self.trainer.settings.best_by}"
            # Without held-out prompts there is no objective before the first iteration.
            value = metrics.get(key, row.get("objective"))
            if value is not None and (not self.best or value > self.best[key]):
                self.best = {key: value, "step": row["step"]}
                save_weights(self.trainer, self.ctx.work / "best.safetensors")
        for index, episode in enumerate(episodes[:SAMPLES]):
            sample = _shown(self.tokenizer, episode)
            self.samples.append({"step": row["step"], **sample})
            if index < TOLD:
                asked, said = (_short(sample[key]) for key in ("prompt", "response"))
                self.ctx.note(f"iteration {row['step']}, reward {episode.score:.2f}: {asked} → {said}")
        unpriced = None if self.trainer.uses_kl_penalty else self.trainer.kl
        for text in self.trainer.guards.look_at_evaluation(metrics, unpriced):
            self.note(text)

    def skip(self, episodes: Sequence[Episode]) -> None:
        """Record the responses of a skipped optimizer step, to show what made its gradient not finite."""
        for episode in episodes[: MOST_SKIPPED - len(self.skipped)]:
            finite = {"advantages": _numbers(episode.advantages_T), "values": _numbers(episode.values_T)}
            self.skipped.append(
                {
                    "iteration": self.trainer.iteration,
                    **_shown(self.tokenizer, episode),
                    "score": episode.score,
                    **finite,
                }
            )
        if self.ctx.is_first:
            _write_lines(self.ctx.work / "skipped.jsonl", self.skipped)
            self.note(f"an optimizer step was skipped; its responses are in {self.ctx.work / 'skipped.jsonl'}")

    def keep(self, row: MetricRow) -> None:
        """Record a row of metrics, and pass it to the trackers."""
        self.rows.append({name: value for name, value in row.items() if not name.startswith("seconds_")})
        self.trackers.log(row)

    def note(self, text: str) -> None:
        """Show a note to the user, and record it."""
        self.notes.append(text)
        self.ctx.note(text)

    def save_when_due(self, done: int) -> None:
        """Save the state if the checkpoint interval has passed, or if the user asks to stop.

        Raises:
            Interrupted: the user asked to stop; the state was saved.
        """
        due = self.session.after(done)
        if due.save:
            extra = {
                "rows": self.rows,
                "samples": self.samples,
                "skipped": self.skipped,
                "notes": self.notes,
                "best": self.best,
                "tokens": self.tokens,
            }
            save_state(self.trainer, self.ctx.work / "state", extra)
            self.session.saved()
        if due.stop:
            raise self.session.stopped(done)

    def take_best(self) -> None:
        """Load the best weights.

        Raises:
            PipelineError: a guard ended the run before it got better than its start.
        """
        if self.best:
            load_weights(self.trainer, self.ctx.work / "best.safetensors")
        if self.best.get("step", 0) == 0 and self.trainer.iteration < self.trainer.settings.iterations:
            is_watched = self.trainer.settings.best_by == "watch"
            raise PipelineError(
                Problem(
                    f"the run ended at iteration {self.trainer.iteration} and never got better than its start",
                    f"a {'watched score' if is_watched else 'held-out reward minus KL'} above that of the reference",
                    self.notes[-1] if self.notes else "",
                ),
                exit_code=ExitCode.FAILED,
            )

    def value_weights(self) -> dict[str, Tensor]:
        """Return the value function's full weights; every process must call it."""
        weights = self.trainer.train_engine.weights().items()
        return {
            name.removeprefix("value."): tensor.contiguous() for name, tensor in weights if name.startswith("value.")
        }

    def finish(self, lineage: JsonObject, value: dict[str, Tensor]) -> StageResult:
        """Write metrics, plots, samples and the value function into the artifact; return the stage's result."""
        ctx = self.ctx
        write_curve(self.rows, ctx.out, title=ctx.name)
        draw_training(metric_rows(self.rows), ctx.out / "training.svg", title=ctx.name)
        _write_lines(ctx.out / "samples.jsonl", self.samples)
        if self.skipped:
            _write_lines(ctx.out / "skipped.jsonl", self.skipped)
        (ctx.out / "value").mkdir()
        save_file(value, ctx.out / "value" / "value.safetensors")
        last = next(row for row in reversed(self.rows) if "reward" in row)
        metrics = {name: float(value) for name, value in last.items() if name != "step"}
        at_best = next(row for row in self.rows if row["step"] == self.best["step"])
        metrics |= {name: value for name, value in at_best.items() if name.startswith("eval_")}
        first = self.rows[0].get("eval_reward")
        gained = f"held-out reward {first:.2f} to {metrics['eval_reward']:.2f}" if first is not None else "trained"
        return StageResult(
            metrics=metrics,
            best=self.best,
            tokens=int(self.tokens),
            trainer_seconds=self.session.clock.total(),
            rows={"train": len(self.trainer.prompts), "held_out": len(self.trainer.held_out)},
            lineage=lineage,
            summary=f"{gained} at {metrics.get('eval_kl', 0.0):.2f} nats, best at iteration {self.best['step']}",
        )


class Trackers:
    """Sends PPO's metrics to the trackers of transformers (tensorboard, wandb, …)."""

    def __init__(self, ctx: StageContext, settings: Any) -> None:
        """Start the trackers, on the first process.

        Raises:
            PipelineError: transformers does not know a tracker, or its package is missing.
        """
        self.callbacks: list[Any] = []
        if not settings.report_to or not ctx.is_first:
            return
        self.arguments = TrainingArguments(output_dir=str(ctx.work), report_to=settings.report_to, run_name=ctx.name)
        self.state = TrainerState(max_steps=settings.iterations, is_world_process_zero=True)
        self.control = TrainerControl()
        try:
            self.callbacks = [each() for each in get_reporting_integration_callbacks(settings.report_to)]
        except (ImportError, RuntimeError, ValueError) as error:  # unknown, or its package is not installed
            statement = f"train.report_to: {' '.join(str(error).split()).rstrip('.')}"
            remedy = "install the tracker's package, or leave it out"
            raise PipelineError(Problem(statement, "trackers of transformers", remedy, stage=ctx.name)) from error
        for callback in self.callbacks:
            callback.on_train_begin(self.arguments, self.state, self.control, model=None)

    def log(self, row: MetricRow) -> None:
        """Send one row of metrics."""
        for callback in self.callbacks:
            self.state.global_step = int(row["step"])
            callback.on_log(self.arguments, self.state, self.control, logs=dict(row))

    def close(self) -> None:
        """Close the trackers."""
        for callback in self.callbacks:
            callback.on_train_end(self.arguments, self.state, self.control)


def _shown(tokenizer: PreTrainedTokenizerBase, episode: Episode) -> JsonObject:
    """Return an episode's prompt and response as text, with its reward."""
    prompt = str(tokenizer.decode(episode.prompt_ids))
    return {"prompt": prompt, "response": episode.text, "reward": round(episode.score, 4)}


def _short(text: str, longest: int = 70) -> str:
    """Return the end of a text in one line; the end of a prompt is what was asked last."""
    line = " ".join(text.split())
    return line if len(line) <= longest else "…" + line[1 - longest :]


def _numbers(row_T: Tensor) -> list[float | str]:
    """Return numbers for JSON; those that are not finite as text."""
    return [value if math.isfinite(value) else str(value) for value in row_T.tolist()]


def _write_lines(file: Path, rows: Sequence[JsonObject]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8")
