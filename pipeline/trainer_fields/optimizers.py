"""The optimizers of transformers: the packages they need, and the allowed values of their arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import Problem, listed, nearest
from pipeline.trainer_fields.arguments import (
    AT_LEAST_0,
    AT_LEAST_1,
    BELOW_1,
    NUMBER,
    POSITIVE,
    SHARE,
    SWITCH,
    Argument,
    of_words,
)
from pipeline.trainer_fields.table import GivenFields

_TORCH = ("adamw_torch_fused", "adamw_torch", "adamw_torch_xla", "adamw_torch_npu_fused")
_TORCHAO = ("adamw_torch_4bit", "adamw_torch_8bit")
_ADAM_BNB = ("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit")
_ADEMAMIX = ("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit")
LION = ("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit")
_RMS_BNB = ("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit")
_GALORE = (
    *("galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise"),
    *("galore_adamw_8bit_layerwise", "galore_adafactor_layerwise"),
)
_APOLLO = ("apollo_adamw", "apollo_adamw_layerwise")
_FREE = ("schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd")
_LOMO = ("lomo", "adalomo")
WITH_EPS = (
    *(*_TORCH, *_TORCHAO, *_ADAM_BNB, *_ADEMAMIX, *_APOLLO, *_FREE[:2]),
    *("stable_adamw", "adamw_anyprecision"),
)
LOW_RANK = (*_GALORE, *_APOLLO)
"""Optimizers with low-rank states for the layers of `optim_target_modules`."""

PACKAGES: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys((*_ADAM_BNB, *_ADEMAMIX, *LION, *_RMS_BNB), ("bitsandbytes", "pip install 'trueup[quantize]'")),
    **dict.fromkeys(_GALORE, ("galore_torch", "pip install galore-torch")),
    **dict.fromkeys(_APOLLO, ("apollo_torch", "pip install apollo-torch")),
    **dict.fromkeys(_FREE, ("schedulefree", "pip install schedulefree")),
    **dict.fromkeys(_LOMO, ("lomo_optim", "pip install lomo-optim")),
    **dict.fromkeys(_TORCHAO, ("torchao", "pip install torchao")),
    "adamw_anyprecision": ("torchdistx", "see https://github.com/pytorch/torchdistx"),
    "adamw_torch_npu_fused": ("torch_npu", "it is for Ascend NPUs"),
    "adamw_torch_xla": ("torch_xla", "it is for TPUs"),
    "grokadamw": ("grokadamw", "pip install grokadamw"),
    "stable_adamw": ("optimi", "pip install torch-optimi"),
}
"""Optimizer to the module of the package it needs, and how to install it."""

_DTYPE = of_words("float32", "bfloat16", "float16")
_ALWAYS = Argument("must be true: transformers takes any word for it", lambda value: value is True)
_RANK = {
    "rank": AT_LEAST_1,
    "update_proj_gap": AT_LEAST_1,
    "scale": POSITIVE,
    "proj_type": of_words("std", "reverse_std", "right", "left", "full"),
}
_ADEMAMIX_ARGS = {
    **dict.fromkeys(("beta1", "beta2", "beta3"), BELOW_1),
    **dict.fromkeys(("alpha", "eps"), AT_LEAST_0),
    **dict.fromkeys(("t_alpha", "t_beta3"), AT_LEAST_1),
}
_APOLLO_ARGS = {**_RANK, "proj": of_words("random", "svd"), "scale_type": of_words("channel", "tensor")}
_TORCHAO_ARGS = {"block_size": AT_LEAST_1, "bf16_stochastic_round": SWITCH}
_FREE_ARGS = {"weight_lr_power": AT_LEAST_0, "r": NUMBER}
_RMS_ARGS = {"alpha": SHARE, "eps": AT_LEAST_0, "momentum": AT_LEAST_0, "centered": SWITCH}
_GROK_RATES = ("alpha_init", "lamb", "gamma", "grokking_signal_decay_rate")
_DTYPES = ("momentum_dtype", "variance_dtype", "compensation_buffer_dtype")
OPTIM_ARGS: Mapping[str, Mapping[str, Argument]] = {
    "sgd": {"momentum": AT_LEAST_0, "dampening": NUMBER, "weight_decay": AT_LEAST_0, "nesterov": SWITCH},
    "adagrad": dict.fromkeys(("lr_decay", "weight_decay", "eps"), AT_LEAST_0),
    "rmsprop": {**_RMS_ARGS, "weight_decay": AT_LEAST_0},
    **dict.fromkeys(_ADEMAMIX, _ADEMAMIX_ARGS),
    **dict.fromkeys(_GALORE, _RANK),
    **dict.fromkeys(_APOLLO, _APOLLO_ARGS),
    **dict.fromkeys(_TORCHAO, _TORCHAO_ARGS),
    **dict.fromkeys(_FREE, _FREE_ARGS),
    "adamw_anyprecision": {"use_kahan_summation": SWITCH, **dict.fromkeys(_DTYPES, _DTYPE)},
    "grokadamw": {**dict.fromkeys(_GROK_RATES, NUMBER), "gradient_clipping": AT_LEAST_0},
    "stable_adamw": {"max_lr": POSITIVE, "kahan_sum": _ALWAYS, "decouple_lr": _ALWAYS},
    **dict.fromkeys(_RMS_BNB, _RMS_ARGS),
}
"""Optimizer to the arguments that `optim_args` may hold; other optimizers read none."""

_SWITCHES = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
"""Texts that transformers reads as booleans."""


def optimizer_problems(given: GivenFields) -> Iterator[Problem]:
    """Yield the problems of `optim` and `optim_args` together.

    Args:
        given: all fields of `train` with their values.
    """
    optim, text = str(given.get("optim", "")), given.get("optim_args")
    if optim in LOW_RANK and not given.get("optim_target_modules"):
        statement = f"train.optim is {optim} without the layers it works on"
        yield Problem(statement, "", "set train.optim_target_modules: all-linear")
    if not isinstance(text, str) or not text:
        return
    takes, read = OPTIM_ARGS.get(optim, {}), {}
    parts = text.replace(" ", "").split(",")
    keys = [part.partition("=")[0] for part in parts]
    for number, part in enumerate(parts):
        key, sign, word = part.partition("=")
        if not sign or "=" in word:
            yield Problem(f"train.optim_args is {text!r}", "must be like `momentum=0.9,nesterov=true`")
        elif key not in takes:
            statement = f"train.optim_args has `{key}`, which {optim} does not take"
            expected = f"one of {listed(takes)}" if takes else "none: its arguments are fields of `train`"
            yield Problem(statement, expected, nearest(key, takes) or "leave it out")
        elif key in keys[:number]:
            yield Problem(f"train.optim_args has {key} twice", "each argument once", "leave one out")
        elif not takes[key].holds(value := _read(word, takes[key])):
            yield Problem(f"train.optim_args has {part}", takes[key].expected)
        else:
            read[key] = value
    if read.get("nesterov") and (not read.get("momentum") or read.get("dampening")):
        statement = "train.optim_args has nesterov=true"
        yield Problem(statement, "a momentum above 0 beside it, and no dampening", "write momentum=0.9,nesterov=true")


def _read(word: str, argument: Argument) -> Any:
    """Return the value of an argument's text as the optimizer gets it."""
    if argument in (SWITCH, _ALWAYS):
        return _SWITCHES.get(word.lower(), word)
    try:
        return float(word)
    except ValueError:
        return word
