"""Checks a plan before it runs: bad rows, too few rows, unsupported compute settings, stages that do not fit memory.

Owns the checks that read data or follow a model through the chain. Caches sources without problems. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.artifacts import Store
from pipeline.errors import PipelineError, Problem, listed
from pipeline.kind.traits import RowCounts
from pipeline.machine.environment import installed
from pipeline.models.load.kernels import INSTALL, NAMES, flash_kernel, has
from pipeline.models.tokenizer.contract import facts_of_folder
from pipeline.parallel.batch_split import batch_split_problems
from pipeline.parallel.pipeline.split import pipeline_bubble_problem, split_problem
from pipeline.parallel.sequence.checks import field_problems, sequence_parallel_problems
from pipeline.parallel.tensor.checks import OPTIMIZERS, dropout_problem, head_problem, optimizer_problem
from pipeline.plan import Plan, PlannedStage
from pipeline.plan.evaluation_notes import evaluation_notes
from pipeline.preflight.checks.adapters import merge_problems, quantize_problems
from pipeline.preflight.checks.engines import vllm_problems
from pipeline.preflight.checks.requests import stage_requests
from pipeline.preflight.checks.sources import (
    Progress,
    SourceCount,
    SourceReport,
    SourceUse,
    read_sources,
    report_problems,
)
from pipeline.preflight.checks.token_rewards import token_reward_problems
from pipeline.preflight.checks.tokenizers import growing_embeddings, offline_notes, pair_problems
from pipeline.preflight.checks.tokens import StageTokens, count_stage_tokens
from pipeline.preflight.forecast import fitting_problems
from pipeline.preflight.forecast.machine import has_no_gpu
from pipeline.preflight.forecast.settings import setting_problems
from pipeline.preflight.forecast.shapes import ModelShapes
from pipeline.recipe import StageSpec, by_line, once_per_group
from pipeline.recipe.partial import mentions
from pipeline.stage import Data, kind_of
from pipeline.training.fields import margin_problem
from pipeline.training.pipelined_fields import unused_problem
from pipeline.training.precision_problems import cpu_problem, ppo_problem

TP_TRANSFORMERS = (5, 23)
"""First version of transformers that shards every model and adapter; 5.20 fails on odd vocabularies, reward heads."""

CONTEXT_KEYS = ("max_position_embeddings", "n_positions")


@dataclass(frozen=True)
class CheckReport:
    """Results of a successful check.

    Attributes:
        sources: row counts of each data field of a stage.
        tokens: token counts of each stage whose tokenizer is on this machine.
        notes: notes on unread columns, embeddings, missing models and evaluations.
    """

    sources: Mapping[SourceUse, SourceCount]
    tokens: Sequence[StageTokens] = ()
    notes: tuple[str, ...] = ()


def check_plan(
    plan: Plan, store: Store, *, problems: Sequence[Problem] = (), progress: Progress | None = None
) -> CheckReport:
    """Check all pending stages, and as far as possible stages that could not be planned.

    Args:
        plan: from `make_plan`, or from `survey` together with ``problems``.
        store: caches the results of earlier checks.
        problems: problems from reading and planning, reported together with those found here.
        progress: is called with a description of the current step.

    Raises:
        PipelineError: there are problems; all of them are listed.
    """
    shapes = ModelShapes(plan, store.root / ".cache")
    sources = read_sources(plan, store, progress)
    few = list(_count_problems(plan, sources))
    splits = {one.spec.name for one in plan.pending if kind_of(one.spec.kind).traits.reading("data").splits_rows}
    refused = {one.stage for one in few if one.stage not in splits}
    tokens = count_stage_tokens(plan, store, shapes, sources, refused, progress)
    counted = {one.use.stage for one in tokens.stages}
    few = [one for one in few if one.stage not in counted]
    growth, too_small = growing_embeddings(plan, shapes)
    everything = replace(plan, stages=(*plan.stages, *_unplanned(plan)))
    all_problems = [
        *_launcher_problems(plan),
        *_engine_problems(everything),
        *setting_problems(everything, shapes),
        *_precision_problems(everything),
        *_division_problems(everything),
        *_sequence_parallel_problems(plan, shapes),
        *_pipeline_split_problems(plan, shapes),
        *sources.problems,
        *few,
        *_report_column_problems(plan, sources),
        *tokens.problems,
        *too_small,
        *_length_problems(plan, shapes),
        *_template_problems(plan),
        *quantize_problems(everything),
        *merge_problems(plan),
        *pair_problems(plan),
        *token_reward_problems(plan),
        *vllm_problems(plan),
        *_tensor_problems(plan, shapes),
    ]
    all_problems += fitting_problems(plan, store)
    requests = list(stage_requests(plan, store))
    all_problems += [one.problem for one in requests if one.problem is not None]
    all_problems = [*problems, *(problem for problem in all_problems if not _rests_on_wrong(plan, problem))]
    if all_problems:
        raise PipelineError(*by_line(once_per_group(all_problems, plan.recipe.copies)))
    unused = [
        f"data {source}: nothing reads {listed([f'`{name}`' for name in names])}"
        for source, names in sources.unused(plan).items()
    ]
    asked = [one.note for one in requests if one.note]
    notes = (*unused, *growth, *asked, *offline_notes(plan), *evaluation_notes(plan, store))
    return CheckReport(sources.counts, tokens.stages, notes)


def _rests_on_wrong(plan: Plan, problem: Problem) -> bool:
    """Return whether a problem is about the default of a field whose own value is invalid and already reported."""
    broken = plan.recipe.broken.get(problem.stage)
    return broken is not None and mentions(problem, broken.wrong)


def _unplanned(plan: Plan) -> Iterator[PlannedStage]:
    """Yield stages that could not be planned, for the checks that need only the stage's own settings."""
    specs = [plan.recipe.stages[name] for name in plan.unplanned]
    specs += [broken.spec for broken in plan.recipe.broken.values() if broken.spec is not None]
    for spec in specs:
        yield PlannedStage(spec, "", "pending", (), {}, {}, None, False, {})


def _unfinished(plan: Plan) -> dict[str, StageSpec]:
    """Return the stages that are pending, could not be planned, or have a broken configuration, by name."""
    stages = {name: plan.recipe.stages[name] for name in plan.unplanned}
    stages |= {name: broken.spec for name, broken in plan.recipe.broken.items() if broken.spec is not None}
    return stages | {stage.spec.name: stage.spec for stage in plan.pending}


def _report_column_problems(plan: Plan, sources: SourceReport) -> Iterator[Problem]:
    """Yield a problem for each column that a stage's report names and the pairs lack."""
    stages = _unfinished(plan)
    for use, count in sources.counts.items():
        for problem in report_problems(stages[use.stage], use, count) if use.stage in stages else ():
            where = plan.recipe.where("stages", use.stage, problem.found.split()[0])
            yield replace(problem, where=where, stage=use.stage)


def _count_problems(plan: Plan, sources: SourceReport) -> Iterator[Problem]:
    """Yield a problem for each stage that gets fewer rows than it needs."""
    stages = _unfinished(plan)
    for use, count in sources.counts.items():
        spec = stages.get(use.stage)
        if spec is not None and use.field == "data":
            rows = RowCounts(count.train, count.held_out, count.shape)
            problem = kind_of(spec.kind).rows_problem(spec.config, rows)
            if problem is None and getattr(getattr(spec.config, "train", None), "use_margin", False):
                problem = margin_problem(count.train, count.margins)
            if problem is not None:
                yield replace(problem, where=plan.recipe.where("stages", spec.name, "data"), stage=spec.name)


def _launcher_problems(plan: Plan) -> Iterator[Problem]:
    """Yield a problem if a run has both local and Slurm stages: a queued job cannot wait for this machine."""
    here = [stage for stage in plan.pending if stage.spec.compute.launcher == "local"]
    names = [stage.spec.name for stage in here]
    if here and len(here) < len(plan.pending):
        statement = f"compute.launcher is local for {', '.join(names)} and slurm for the others"
        expected = "one launcher for all stages of a run: a job cannot wait for this machine"
        remedy = "set it for the whole recipe, or run the parts one after the other with --only or --until"
        yield Problem(statement, expected, remedy, here[0].spec.where, names[0])


def _engine_problems(plan: Plan) -> Iterator[Problem]:
    """Yield problems of engines: DeepSpeed is missing on this machine, or a field of `train` with sharded weights."""
    for stage in plan.pending:
        compute = stage.spec.compute
        here = compute.launcher == "local" and kind_of(stage.spec.kind).takes_layout
        if here and compute.zero and not installed("deepspeed"):
            statement = f"compute.zero is {compute.zero}, and DeepSpeed is not installed"
            remedy = "pip install 'trueup[deepspeed]'"
            yield Problem(statement, "", remedy, stage.spec.where, stage.spec.name)
        yield from _unsharded_problems(plan, stage)
        if here:
            yield from _kernel_problems(stage)
            yield from _version_problems(stage)


def _unsharded_problems(plan: Plan, stage: PlannedStage) -> Iterator[Problem]:
    """Yield each number of `train` that needs whole weights in every process, with `compute` that shards them."""
    compute, train = stage.spec.compute, getattr(stage.spec.config, "train", None)
    fields = kind_of(stage.spec.kind).traits.compute.unsharded_fields if compute.zero or compute.fsdp else {}
    for name, needing in fields.items():
        if value := getattr(train, name, 0):
            statement = f"train.{name} is {value:g} with compute.{'zero' if compute.zero else 'fsdp'}"
            remedy = f"leave one of them out: {needing} needs whole weights in every process"
            where = plan.recipe.where("stages", stage.spec.name, "train", name)
            yield Problem(statement, "must be 0 there", remedy, where, stage.spec.name)


def _version_problems(stage: PlannedStage) -> Iterator[Problem]:
    """Yield a problem if the installed transformers is too old for tensor parallelism or FSDP; vLLM may pin it."""
    version = installed("transformers")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) >= TP_TRANSFORMERS:
        return
    compute = stage.spec.compute
    for word, is_asked in (("tensor_parallel", compute.tensor_parallel > 1), ("fsdp", compute.fsdp)):
        if is_asked:
            statement = f"compute.{word} is {str(getattr(compute, word)).lower()}, and transformers is {version}"
            expected = f"must be {'.'.join(map(str, TP_TRANSFORMERS))} or later for that"
            remedy = "pip install -U transformers, in an environment without vllm, or set compute.zero: 3 instead"
            yield Problem(statement, expected, remedy, stage.spec.where, stage.spec.name)


def _precision_problems(plan: Plan) -> Iterator[Problem]:
    """Yield a problem for each precision or device that a stage or this machine does not support."""
    for stage in plan.pending:
        compute, kind = stage.spec.compute, kind_of(stage.spec.kind)
        support, problem = kind.traits.compute, None
        if not kind.takes_layout:
            continue
        if not support.sharded_fp16:
            problem = ppo_problem(compute.precision, compute, kind.name)
        is_here = compute.launcher == "local" and compute.hardware is None and has_no_gpu()
        if problem is None and (is_here or compute.device == "cpu"):
            problem = cpu_problem(compute.precision, compute.zero if support.transformers_trainer else 0)
            if compute.device == "cuda":
                problem = Problem(
                    "compute.device is cuda", "a GPU, which this machine lacks", "set compute.device: auto"
                )
            if problem is not None and compute.device != "cpu":
                elsewhere = f"{problem.remedy}, or name the GPU it will run on as compute.hardware"
                problem = replace(problem, remedy=elsewhere)
        if problem is not None:
            yield replace(problem, where=stage.spec.where, stage=stage.spec.name)


def _kernel_problems(stage: PlannedStage) -> Iterator[Problem]:
    """Yield a problem for each requested kernel that is not installed; the stage itself checks for a GPU."""
    compute = stage.spec.compute
    asked = {
        "flash": (compute.attention == "flash" and flash_kernel() is None, "compute.attention is flash"),
        "liger": (compute.liger == "on" and not has("liger_kernel"), "compute.liger is on"),
    }
    for extra, (is_missing, what) in asked.items():
        if is_missing:
            statement = f"{what}, and {NAMES[extra]} is not installed"
            yield Problem(statement, "", INSTALL[extra], stage.spec.where, stage.spec.name)


def _division_problems(plan: Plan) -> Iterator[Problem]:
    """Yield a problem for each batch that the processes or the micro-batch size of its stage do not divide."""
    for stage in plan.pending:
        train, compute = getattr(stage.spec.config, "train", None), stage.spec.compute
        is_parallel = train is not None and kind_of(stage.spec.kind).parallel
        if is_parallel and not compute.contradictions():
            support = kind_of(stage.spec.kind).traits.compute
            problems = batch_split_problems(train, compute.micro_batch, compute.dims, support)
            yield from (replace(one, where=stage.spec.where, stage=stage.spec.name) for one in problems)


def _sequence_parallel_problems(plan: Plan, shapes: ModelShapes) -> Iterator[Problem]:
    """Yield models and fields of `train` that sequence parallelism does not support."""
    for stage in plan.pending:
        compute, train = stage.spec.compute, getattr(stage.spec.config, "train", None)
        count, where = compute.sequence_parallel, (stage.spec.where, stage.spec.name)
        if count == 1 or "sequence_parallel" not in kind_of(stage.spec.kind).traits.compute.model_parallel:
            continue
        problems = sequence_parallel_problems(shapes.config_of(stage) or {}, count, compute.ranks)
        problems += field_problems(train.passthrough()) if train is not None else []
        yield from (replace(problem, where=where[0], stage=where[1]) for problem in problems)


def _pipeline_split_problems(plan: Plan, shapes: ModelShapes) -> Iterator[Problem]:
    """Yield problems of pipeline parallelism: an unsplittable model, a large bubble, unsupported trainer fields."""
    for stage in plan.pending:
        compute, train = stage.spec.compute, getattr(stage.spec.config, "train", None)
        if compute.pipeline_parallel == 1 or not kind_of(stage.spec.kind).parallel or train is None:
            continue
        config = shapes.config_of(stage) or {}
        problems = (
            split_problem({"model_type": config.get("type", ""), **config}, compute.pipeline_parallel),
            pipeline_bubble_problem(train.batch_size, compute.replicas, compute.pipeline_parallel),
            unused_problem(train, getattr(stage.spec.config, "adapter", None)),
        )
        yield from (replace(one, where=stage.spec.where, stage=stage.spec.name) for one in problems if one is not None)


def _tensor_problems(plan: Plan, shapes: ModelShapes) -> Iterator[Problem]:
    """Yield models, optimizers and adapters that tensor parallelism does not support."""
    for stage in plan.pending:
        size = stage.spec.effective_compute.tensor_parallel
        if size == 1:
            continue
        fields = shapes.config_of(stage) or {}
        heads = int(fields.get("num_attention_heads") or 0)
        problem = head_problem(heads, int(fields.get("num_key_value_heads") or heads), size) if heads else None
        if problem is not None:
            yield replace(problem, where=stage.spec.where, stage=stage.spec.name)
        train, adapter = getattr(stage.spec.config, "train", None), getattr(stage.spec.config, "adapter", None)
        problem = optimizer_problem(getattr(train, "optim", OPTIMIZERS[0]), size)
        if problem is not None:
            yield replace(problem, where=plan.recipe.where("stages", stage.spec.name), stage=stage.spec.name)
        problem = dropout_problem(getattr(adapter, "dropout", 0), size)
        if problem is not None:
            where = plan.recipe.where("stages", stage.spec.name, "adapter", "dropout")
            yield replace(problem, where=where, stage=stage.spec.name)


def _length_problems(plan: Plan, shapes: ModelShapes) -> Iterator[Problem]:
    """Yield a problem for each `train.max_length` above the model's context length."""
    for stage in plan.pending:
        train = getattr(stage.spec.config, "train", None)
        asked = getattr(train, "max_length", None)
        if asked is None:
            continue
        fields = shapes.config_of(stage) or {}
        context = next((int(fields[key]) for key in CONTEXT_KEYS if fields.get(key)), None)
        if context is not None and asked > context:
            yield Problem(
                f"train.max_length is {asked}",
                f"at most the model's context of {context} tokens",
                "lower it, or give the model a longer context",
                plan.recipe.where("stages", stage.spec.name, "train", "max_length"),
                stage.spec.name,
            )


CONVERSATIONS = ("messages", "sharegpt", "alpaca", "hh")
"""Formats whose rows have turns of a conversation, and are never plain text."""


def _template_problems(plan: Plan) -> Iterator[Problem]:
    """Yield a problem for each existing model without a chat template in a stage that reads conversations.

    Rows of most formats, and those of an artifact, may be plain text, which such a model continues. Whether they are is
    seen when they are encoded.
    """
    for stage in plan.pending:
        if all(marker.shape == "text" for marker in type(stage.spec.config).markers(Data).values()):
            continue
        names = {one.source_name for one in stage.data.values()}
        sources = [source for name, source in plan.recipe.data.items() if name in names]
        if not any((source.format in CONVERSATIONS and not source.artifact) or source.system for source in sources):
            continue
        if getattr(stage.spec.config, "chat_template", None):
            continue
        for items in stage.inputs.values():
            for item in items:
                known = facts_of_folder(item.artifact, item.name) if item.artifact is not None else None
                if known is not None and not known.template:
                    yield Problem(
                        f"`{item.ref}` has no chat template",
                        "one, to render conversations",
                        "put a chat_template.jinja into its folder",
                        plan.recipe.where("stages", stage.spec.name, item.field),
                        stage.spec.name,
                    )
