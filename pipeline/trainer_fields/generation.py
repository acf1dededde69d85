"""The words of transformers' GenerationConfig, which `generation_kwargs` may hold.

transformers keeps a word that it does not know and samples without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import Problem, nearest
from pipeline.trainer_fields.arguments import is_number

OF_TRAIN = ("cache_implementation", "max_new_tokens", "min_p", "repetition_penalty", "temperature", "top_k", "top_p")
"""Words that a recipe says in `train` itself; here they would take their place unseen."""

GENERATION_WORDS = (
    *("assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight"),
    *("assistant_lookbehind", "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "cache_config"),
    *("compile_config", "constraints", "continuous_batching_config", "decoder_start_token_id", "disable_compile"),
    *("diversity_penalty", "do_sample", "dola_layers", "early_stopping", "encoder_no_repeat_ngram_size"),
    *("encoder_repetition_penalty", "eos_token_id", "epsilon_cutoff", "eta_cutoff"),
    *("exponential_decay_length_penalty", "force_words_ids", "forced_bos_token_id", "forced_eos_token_id"),
    *("guidance_scale", "is_assistant", "length_penalty", "low_memory", "max_cache_len", "max_length"),
    *("max_matching_ngram_size", "max_time", "min_length", "min_new_tokens", "no_repeat_ngram_size"),
    *("num_assistant_tokens", "num_assistant_tokens_schedule", "num_beam_groups", "num_beams"),
    *("num_return_sequences", "output_attentions", "output_hidden_states", "output_logits", "output_scores"),
    *("pad_token_id", "penalty_alpha", "prefill_chunk_size", "prompt_lookup_num_tokens", "remove_invalid_values"),
    *("renormalize_logits", "return_dict_in_generate", "sequence_bias", "speculation_type", "stop_strings"),
    *("suppress_tokens", "target_lookbehind", "token_healing", "top_h", "typical_p", "use_cache", "use_mtp"),
    "watermarking_config",
)
"""The others."""


def generation_problems(given: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what transformers would pass over in `generation_kwargs`; vLLM, which has other words, refuses it itself.

    Args:
        given: all words of `train` with their values.
    """
    kwargs = given.get("generation_kwargs")
    if not isinstance(kwargs, Mapping) or given.get("use_vllm"):
        return
    for key in kwargs:
        if key in OF_TRAIN:
            yield Problem(f"train.generation_kwargs has {key}", "a word that `train` does not have", f"use train.{key}")
        elif key not in GENERATION_WORDS:
            found = f"train.generation_kwargs has {key}, which transformers does not know"
            yield Problem(found, "", nearest(str(key), GENERATION_WORDS) or "leave it out")
    least, most = kwargs.get("min_new_tokens"), given.get("max_new_tokens")
    if is_number(least) and is_number(most) and least > most:
        found = f"train.generation_kwargs has min_new_tokens: {least}"
        yield Problem(found, f"at most train.max_new_tokens ({most})")
