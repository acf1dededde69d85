"""Classifies every field of every trainer's configuration: it changes the result, is runtime, or is refused.

Every field of `table.json` is in one of the three classes; a test fails when a new trl or transformers adds a field
without a class. A kind's own field of that name (`learning_rate`, `beta`) takes precedence.
"""

from __future__ import annotations

from collections.abc import Mapping

CHANGES: Mapping[str, tuple[str, ...]] = {
    "the optimizer": (
        *("adam_beta1", "adam_beta2", "adam_epsilon", "learning_rate", "max_grad_norm", "optim", "optim_args"),
        *("optim_target_modules", "weight_decay"),
    ),
    "the learning rate over time": ("lr_scheduler_kwargs", "lr_scheduler_type", "max_steps", "warmup_steps"),
    "evaluations, and which weights are kept": (
        *("eval_delay", "eval_steps", "eval_strategy"),
        *("greater_is_better", "load_best_model_at_end", "metric_for_best_model"),
    ),
    "what is computed": (
        *("disable_dropout", "label_smoothing_factor", "max_length", "neftune_noise_alpha", "router_aux_loss_coef"),
        *("torch_compile", "torch_compile_backend", "torch_compile_mode"),
    ),
    "the objective": (
        *("beta", "center_rewards_coefficient", "delta", "desirable_weight", "discopop_tau", "entropy_coef"),
        *("entropy_coef_delta", "entropy_coef_max", "entropy_coef_min", "entropy_target", "epsilon", "epsilon_high"),
        *("f_alpha_divergence_coef", "f_divergence_type", "importance_sampling_level", "label_smoothing", "loss_type"),
        *("loss_weights", "mask_truncated_completions", "multi_objective_aggregation", "normalize_advantages"),
        *("off_policy_mask_threshold", "ref_model_mixup_alpha", "ref_model_sync_steps", "reward_clip_range"),
        *("sapo_temperature_neg", "sapo_temperature_pos", "scale_rewards", "sync_ref_model", "top_entropy_quantile"),
        *("undesirable_weight", "use_adaptive_entropy", "use_bias_correction_kl", "use_weighting", "vespo_k_neg"),
        *("vespo_k_pos", "vespo_lambda_neg", "vespo_lambda_pos"),
    ),
    "the sampling": (
        *("cache_implementation", "cast_lm_head_to_fp32", "generation_batch_size", "generation_kwargs", "min_p"),
        *("num_generations", "num_generations_eval", "num_iterations", "repetition_penalty", "shuffle_dataset"),
        *("temperature", "top_k", "top_p", "transformers_continuous_batching_config"),
        *("use_transformers_continuous_batching", "use_vllm", "vllm_importance_sampling_clip_max"),
        *("vllm_importance_sampling_clip_min", "vllm_importance_sampling_correction", "vllm_importance_sampling_mode"),
        *("vllm_max_model_length", "vllm_mode", "vllm_model_impl", "vllm_structured_outputs_regex"),
        "vllm_tensor_parallel_size",
    ),
}
"""Fields that change the weights or the metrics, grouped by what they change; they enter the fingerprint."""

RUNTIME_TRAIN_FIELDS: frozenset[str] = frozenset(
    {
        "activation_offloading",
        "dataloader_multiprocessing_context",
        "dataloader_num_workers",
        "dataloader_persistent_workers",
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
        "ddp_broadcast_buffers",
        "ddp_bucket_cap_mb",
        "ddp_find_unused_parameters",
        "ddp_static_graph",
        "ds3_gather_for_generation",
        "log_completions",
        "log_level",
        "log_level_replica",
        "log_on_each_node",
        "log_unique_prompts",
        "logging_first_step",
        "logging_steps",
        "logging_strategy",
        "num_completions_to_print",
        "per_device_eval_batch_size",
        "project",
        "report_to",
        "run_name",
        "save_steps",
        "save_strategy",
        "torch_empty_cache_steps",
        "trackio_bucket_id",
        "trackio_space_id",
        "trackio_static_space_id",
        "vllm_enable_sleep_mode",
        "vllm_gpu_memory_utilization",
        "vllm_group_port",
        "vllm_server_base_url",
        "vllm_server_host",
        "vllm_server_port",
        "vllm_server_timeout",
    }
)
"""Fields that cannot change the weights: where a stage runs, how it logs and saves. They are not in the fingerprint."""

_BATCH = "use `train.batch_size` (rows per step in all) and `compute.micro_batch` (rows a device works on at once)"
_PRECISION = "use `compute.precision`"
_CHECKPOINTING = "use `compute.activation_checkpointing`"
_LAYOUT = "the stage decides how rows are laid out in a batch"
_ORDER = "the stage orders the rows by length and seed; in `pretrain`, `train.order: file` keeps the file's order"
_PADDING = "rows are padded to the longest of their batch"
_HUB = "a recipe does not upload; use `trueup push`"
_PROCESSES = "use `compute:`"
_TOKENS = "special tokens and chat template belong to the tokenizer stage"
_METRICS = "the stage computes its own metrics, none from predictions; leave it out"
_PREPARED = "the stage prepares the rows"
_KEPT = "checkpoints are written by the clock (`compute.checkpoint_every_s`), the newest and the best are kept"
CONTROLLED: Mapping[str, str] = {
    "accelerator_config": _PROCESSES,
    "activation_checkpointing": _CHECKPOINTING,
    "activation_checkpointing_kwargs": _CHECKPOINTING,
    "assistant_only_loss": "the stage learns from the assistant's tokens only",
    "auto_find_batch_size": "use `compute.micro_batch: auto`",
    "average_tokens_across_devices": "a token weighs the same however many processes there are; leave it out",
    "batch_eval_metrics": _METRICS,
    "bf16": _PRECISION,
    "bf16_full_eval": _PRECISION,
    "chat_template_kwargs": _TOKENS,
    "chat_template_path": _TOKENS,
    "completion_only_loss": "the stage learns from the assistant's tokens only",
    "data_seed": "use the stage's `seed`",
    "dataloader_drop_last": "rows that fill no batch are left out, others in each epoch; all held-out rows count",
    "dataloader_in_order": "batches come in the order of the seed",
    "dataset_kwargs": _PREPARED,
    "dataset_num_proc": _PREPARED,
    "dataset_text_field": "rename the column in the data source: `columns: {old: text}`",
    "ddp_backend": "the backend follows `compute.device`: gloo on a CPU, NCCL on GPUs",
    "ddp_timeout": "processes wait half an hour for one another, and a lost one is noticed sooner; leave it out",
    "debug": "leave it out; see `trueup run --debug`",
    "deepspeed": "use `compute.zero` and `compute.offload`",
    "disable_tqdm": "trueup shows the progress; `--json`, or a pipe, is without bars",
    "do_eval": "held-out rows are evaluated where the data has some: set `held_out` of the data source",
    "do_predict": "use an `evaluate` stage",
    "do_train": "a stage trains; use `trueup run --only` to leave stages out",
    "enable_jit_checkpoint": "checkpoints are written as they are needed",
    "eos_token": _TOKENS,
    "eval_accumulation_steps": _METRICS,
    "eval_do_concat_batches": _METRICS,
    "eval_on_start": "a resumed run would evaluate again; name the start among `models` of an `evaluate` stage",
    "eval_packing": _LAYOUT,
    "eval_use_gather_object": _METRICS,
    "fp16": _PRECISION,
    "fp16_full_eval": _PRECISION,
    "fsdp": "use `compute.fsdp`",
    "fsdp_config": "use `compute.fsdp`",
    "full_determinism": "runs are deterministic where the hardware allows it",
    "gradient_accumulation_steps": _BATCH,
    "gradient_checkpointing": _CHECKPOINTING,
    "gradient_checkpointing_kwargs": _CHECKPOINTING,
    "hub_always_push": _HUB,
    "hub_model_id": _HUB,
    "hub_private_repo": _HUB,
    "hub_revision": _HUB,
    "hub_strategy": _HUB,
    "hub_token": _HUB,
    "ignore_data_skip": "a resumed run reads on where it stopped",
    "include_for_metrics": _METRICS,
    "include_num_input_tokens_seen": "the manifest has the tokens trained on",
    "label_names": "the stage makes the labels",
    "ld_alpha": "the reference's log-probabilities are those of whole responses; use `loss_type: sigmoid_norm`",
    "length_column_name": _ORDER,
    "liger_kernel_config": "use `compute.liger`",
    "local_rank": _PROCESSES,
    "log_completions_hub_repo": _HUB,
    "log_multimodal": "models of text have no images to log",
    "logging_nan_inf_filter": "a loss that is not a number ends the stage; it is not hidden",
    "max_completion_length": "use `train.max_new_tokens`",
    "max_tool_calling_iterations": "no tools are called while training",
    "model_init_kwargs": "use `model:`, `adapter:` and `compute.precision`",
    "num_train_epochs": "use `train.epochs`",
    "output_dir": "a stage writes into the store; use `--store`",
    "packing": _LAYOUT,
    "packing_strategy": _LAYOUT,
    "pad_to_multiple_of": _PADDING,
    "pad_token": _TOKENS,
    "padding_free": _LAYOUT,
    "parallelism_config": _PROCESSES,
    "per_device_train_batch_size": _BATCH,
    "precompute_ref_batch_size": "use `compute.micro_batch`",
    "precompute_ref_log_probs": "the stage computes them once",
    "prediction_loss_only": _METRICS,
    "push_to_hub": _HUB,
    "remove_unused_columns": _PREPARED,
    "restore_callback_states_from_checkpoint": "a resumed run reads on where it stopped",
    "resume_from_checkpoint": "a stage that was cut off resumes by itself",
    "save_on_each_node": _KEPT,
    "save_only_model": "checkpoints keep what a resumed run needs",
    "save_total_limit": _KEPT,
    "reward_weights": "write `weight` in `reward:`",
    "seed": "use the stage's `seed`",
    "skip_memory_metrics": "`trueup plan` estimates memory, and the manifest has what was measured",
    "steps_per_generation": "use `train.generation_batch_size` (responses sampled at a time)",
    "tf32": _PRECISION,
    "train_sampling_strategy": _ORDER,
    "trust_remote_code": "use `trust_remote_code` of the recipe",
    "truncation_mode": "`train.max_length` cuts conversations at the end, and leaves out pairs that are longer",
    "use_cache": "no cache is kept while training; `generate` and `evaluate` keep one",
    "use_liger_kernel": "use `compute.liger`",
    "use_cpu": "use `compute.device`",
    "use_transformers_paged": "use `train.use_transformers_continuous_batching`, its new name",
    "vllm_importance_sampling_cap": "use `train.vllm_importance_sampling_clip_max`, its new name",
}
"""Fields that trueup sets itself, with what to write instead."""

_ONCE = "the reference is the model the stage starts from, its log-probabilities are computed once"
_OWN_LOSS = "{} has a loss of its own that does not read it"
_SAMPLED = "responses to held-out prompts are sampled as many at a time as those to learn from"
REFUSED_BY: Mapping[str, Mapping[str, str]] = {
    "SFTConfig": {"shuffle_dataset": _ORDER},
    "RewardConfig": {"label_smoothing_factor": _OWN_LOSS.format("the reward model")},
    "DPOConfig": {
        "label_smoothing_factor": "use `train.label_smoothing`, with a loss that takes it (`train.loss_type: robust`)",
        "ref_model_mixup_alpha": _ONCE,
        "ref_model_sync_steps": _ONCE,
        "sync_ref_model": _ONCE,
    },
    "KTOConfig": {
        "label_smoothing_factor": _OWN_LOSS.format("KTO"),
        "per_device_eval_batch_size": "use `train.kl_batch`: rows of a pass, here too",
        "ref_model_mixup_alpha": _ONCE,
        "ref_model_sync_steps": _ONCE,
        "sync_ref_model": _ONCE,
    },
    "GRPOConfig": {
        "label_smoothing_factor": _OWN_LOSS.format("GRPO"),
        "per_device_eval_batch_size": _SAMPLED,
    },
    "RLOOConfig": {
        "label_smoothing_factor": _OWN_LOSS.format("RLOO"),
        "per_device_eval_batch_size": _SAMPLED,
    },
}
"""Trainer to the fields that only other trainers read, with what to write instead."""

ALL_CHANGES = frozenset(name for names in CHANGES.values() for name in names)


def refusal(trainer: str, field: str) -> str | None:
    """Return what to write instead of a refused field; None for a field that is passed on."""
    return REFUSED_BY.get(trainer, {}).get(field, CONTROLLED.get(field))
