"""Checks `generation_kwargs`, fields of transformers' GenerationConfig that change what is sampled.

transformers silently ignores unknown fields. Some known fields have no effect in these trainers, or fail when the first
responses are sampled; they are refused, with what to write instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipeline.errors import Problem, nearest
from pipeline.trainer_fields.arguments import (
    AT_LEAST_0,
    AT_LEAST_1,
    BELOW_1,
    COUNT,
    NUMBER,
    POSITIVE,
    SWITCH,
    Argument,
    is_number,
    ranged,
)
from pipeline.trainer_fields.table import GivenFields

OF_TRAIN = ("cache_implementation", "max_new_tokens", "min_p", "repetition_penalty", "temperature", "top_k", "top_p")
"""Fields that a recipe sets in `train` itself; here they would override them silently."""

_IDS = Argument("must be a list of token ids", lambda value: _are_ids(value) and bool(value))
_ID = Argument("must be a token id, or a list of them", lambda value: COUNT.holds(value) or _IDS.holds(value))
_TEXTS = Argument(
    "must be a list of lists of token ids",
    lambda value: isinstance(value, list) and bool(value) and all(_IDS.holds(one) for one in value),
)
_PAIR = Argument(
    "must be where it starts and how fast it grows, e.g. `[10, 1.05]`",
    lambda value: isinstance(value, list) and len(value) == 2 and COUNT.holds(value[0]) and is_number(value[1]),
)
_MAPPING = Argument("must be a mapping", lambda value: isinstance(value, Mapping))
_BIASES = Argument(
    "must be a list of token ids with their bias, e.g. `[[[5, 6], -1.0]]`",
    lambda value: isinstance(value, list) and bool(value) and all(_is_bias(one) for one in value),
)
_SAMPLES = Argument("must be true: else all answers to a prompt are one, and nothing is learnt", lambda v: v is True)
TAKEN: Mapping[str, Argument] = {
    **dict.fromkeys(("begin_suppress_tokens", "suppress_tokens"), _IDS),
    **dict.fromkeys(("encoder_no_repeat_ngram_size", "min_length", "min_new_tokens", "no_repeat_ngram_size"), COUNT),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff"), BELOW_1),
    **dict.fromkeys(("remove_invalid_values", "renormalize_logits", "use_cache"), SWITCH),
    **dict.fromkeys(("cache_config", "watermarking_config"), _MAPPING),
    **dict.fromkeys(("num_beams", "prefill_chunk_size"), AT_LEAST_1),
    **dict.fromkeys(("top_h", "typical_p"), ranged("> 0 and <= 1", lambda value: 0 < value <= 1)),
    "bad_words_ids": _TEXTS,
    "do_sample": _SAMPLES,
    "early_stopping": Argument("must be true, false or never", lambda value: value in (True, False, "never")),
    "encoder_repetition_penalty": POSITIVE,
    "exponential_decay_length_penalty": _PAIR,
    "forced_eos_token_id": _ID,
    "guidance_scale": AT_LEAST_0,
    "length_penalty": NUMBER,
    "sequence_bias": _BIASES,
}
"""Fields that change what is sampled, with the values each takes."""

_TOKENS = "special tokens belong to the tokenizer stage"
_ONE_AT_A_TIME = "answers are sampled many at a time, an assistant serves one"
_GONE = "this transformers samples as if it were not there"
_NOT_READ = "what else the model computes is not read"
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id"), _TOKENS),
    **dict.fromkeys(("output_attentions", "output_hidden_states", "output_logits", "output_scores"), _NOT_READ),
    **dict.fromkeys(("constraints", "diversity_penalty", "dola_layers", "force_words_ids", "low_memory"), _GONE),
    **dict.fromkeys(("num_beam_groups", "penalty_alpha"), _GONE),
    **dict.fromkeys(
        (
            *("assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight"),
            *("assistant_lookbehind", "is_assistant", "max_matching_ngram_size", "num_assistant_tokens"),
            *("num_assistant_tokens_schedule", "prompt_lookup_num_tokens", "speculation_type", "target_lookbehind"),
            "use_mtp",
        ),
        _ONE_AT_A_TIME,
    ),
    **dict.fromkeys(("compile_config", "disable_compile"), "nothing is compiled while it samples"),
    "continuous_batching_config": "use train.transformers_continuous_batching_config",
    "forced_bos_token_id": "an answer begins where the prompt ends",
    "max_cache_len": "a cache is as long as the answers",
    "max_length": "use train.max_new_tokens",
    "max_time": "answers would depend on how fast the machine is; use train.max_new_tokens",
    "num_return_sequences": "use train.num_generations",
    "return_dict_in_generate": _NOT_READ,
    "stop_strings": "answers end at tokens; end them with the chat template",
    "token_healing": "an answer begins where the prompt ends",
}
"""Fields that have no effect here or make sampling fail, with the reason or what to write instead."""

_BEAMS = ("early_stopping", "length_penalty")
"""Fields that rank beams and need beam search."""


def generation_problems(given: GivenFields) -> Iterator[Problem]:
    """Yield fields of `generation_kwargs` that transformers would ignore; vLLM checks its own fields.

    Args:
        given: all fields of `train` with their values.
    """
    kwargs = given.get("generation_kwargs")
    if not isinstance(kwargs, Mapping) or given.get("use_vllm"):
        return
    for key, value in kwargs.items():
        statement = f"train.generation_kwargs has {key}"
        if key in OF_TRAIN:
            yield Problem(statement, "a word that `train` does not have", f"use train.{key}")
        elif key in REFUSED:
            yield Problem(statement, "a word that changes what is sampled", REFUSED[key])
        elif key not in TAKEN:
            remedy = nearest(str(key), TAKEN) or "leave it out"
            yield Problem(f"{statement}, which transformers does not know", "", remedy)
        elif value is not None and not TAKEN[key].holds(value):
            yield Problem(f"{statement}: {value}", TAKEN[key].expected)
        elif value is not None and key in _BEAMS and not _has_beams(kwargs):
            yield Problem(f"{statement}, which ranks beams", "num_beams above 1 beside it", "leave it out")
    least, most = kwargs.get("min_new_tokens"), given.get("max_new_tokens")
    if is_number(least) and is_number(most) and least > most:
        statement = f"train.generation_kwargs has min_new_tokens: {least}"
        yield Problem(statement, f"at most train.max_new_tokens ({most})")


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(COUNT.holds(one) for one in value)


def _is_bias(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and _IDS.holds(value[0]) and is_number(value[1])


def _has_beams(kwargs: GivenFields) -> bool:
    beams = kwargs.get("num_beams")
    return is_number(beams) and beams > 1
