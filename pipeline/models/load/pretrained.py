"""Loads models and tokenizers from an artifact, a folder or a hub.

Owns what is safe to load: safetensors only, and no code of the repository unless the recipe allows it. Knows nothing of
training. Files of an artifact:

    model.safetensors, config.json, generation_config.json     full weights, loadable by plain `transformers`
    tokenizer.json, tokenizer_config.json, chat_template.jinja
    adapter/                                                   the LoRA adapter those weights contain, if there is one
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, Unpack

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
)
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from pipeline.artifacts.implicit_reward import SETTINGS_FILE
from pipeline.errors import PipelineError, Problem, counted
from pipeline.models.load.deferred import Stored, tensor_files
from pipeline.models.load.quantized_files import quantization_of_files
from pipeline.parallel.tensor.sharding import finish_sharding, tp_config
from pipeline.parallel.zero.zero3 import DeepSpeedConfig, gather_parameter, zero3_loading
from pipeline.plain_data import KeywordArguments
from pipeline.stage import ResolvedInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Precision = Literal["fp32", "bf16", "fp16"]
Quantize = Literal["4bit", "8bit"]


class WeightOptions(TypedDict, total=False):
    """How a loaded model holds its weights; what is left out is as `load_causal_lm` has it by default.

    Attributes:
        dtype: of the weights in memory.
        quantize: load the weights in 4 or 8 bits; needs bitsandbytes (a CPU works, slowly).
        attention: `transformers`' name of an attention kernel; None leaves the choice to it.
        zero3: ZeRO-3's configuration: each weight is sharded over all ranks as it is read. Every rank must load.
        tp_size: tensor-parallel size; each rank reads its own shards.
    """

    dtype: Precision
    quantize: Quantize | None
    attention: str | None
    zero3: DeepSpeedConfig | None
    tp_size: int


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_UNSAFE = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class Source(NamedTuple):
    """Where `transformers` loads from: a folder, or a hub id with its revision."""

    place: str
    revision: str | None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder on this machine."""
        return Path(self.place).is_dir()


def source_of(model_input: ResolvedInput) -> Source:
    """Split ``owner/name@revision``; a folder is taken as it is.

    Raises:
        PipelineError: a path that does not exist.
    """
    path = model_input.path
    if Path(path).is_dir():
        return Source(path, None)
    if Path(path).is_absolute() or path.startswith("."):
        raise PipelineError(Problem(f"no folder {path}", "a folder with a model", f"check `{model_input.ref}`"))
    place, _, revision = path.partition("@")
    return Source(place, revision or None)


def load_tokenizer(model_input: ResolvedInput, trust_remote_code: bool = False) -> Any:
    """Load a tokenizer; one without a padding token pads with its end token.

    Raises:
        PipelineError: there is no tokenizer, or it needs code of the repository that the recipe does not allow.
    """
    source = source_of(model_input)
    with quiet(), explained(source, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            source.place, revision=source.revision, trust_remote_code=trust_remote_code
        )
    if tokenizer.eos_token_id is None:
        raise PipelineError(Problem(f"the tokenizer of {source.place} has no end token", "an eos_token"))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def hidden_size(model_input: ResolvedInput, trust_remote_code: bool = False) -> int:
    """Return the hidden size of a model, from its configuration alone; 0 if the configuration has none.

    Raises:
        PipelineError: there is no configuration.
    """
    config = _config(source_of(model_input), trust_remote_code)
    return int(getattr(config.get_text_config(), "hidden_size", 0))


def is_tied(model_input: ResolvedInput, trust_remote_code: bool = False) -> bool:
    """Return whether a model's output layer shares the weight of its embedding, from its configuration alone."""
    config = _config(source_of(model_input), trust_remote_code)
    return bool(getattr(config.get_text_config(), "tie_word_embeddings", False))


def _config(source: Source, trust_remote_code: bool) -> Any:
    with quiet(), explained(source, "configuration"):
        return AutoConfig.from_pretrained(source.place, revision=source.revision, trust_remote_code=trust_remote_code)


def stored_bits(model_input: ResolvedInput, trust_remote_code: bool = False) -> str:
    """Return how a model's files are quantised, from its configuration alone; empty when they are not.

    Raises:
        PipelineError: there is no configuration.
    """
    return quantization_of_files(_config(source_of(model_input), trust_remote_code).to_dict())


def load_causal_lm(
    model_input: ResolvedInput,
    dtype: Precision = "fp32",
    trust_remote_code: bool = False,
    *,
    quantize: Quantize | None = None,
    attention: str | None = None,
    zero3: DeepSpeedConfig | None = None,
    tp_size: int = 1,
) -> Any:
    """Load a causal language model.

    Args:
        model_input: artifact, folder or hub id.
        dtype: of the weights in memory.
        trust_remote_code: whether the repository may run its own Python.
        quantize: load the weights in 4 or 8 bits; needs bitsandbytes (a CPU works, slowly).
        attention: `transformers`' name of an attention kernel; its own choice when omitted.
        zero3: ZeRO-3's configuration: each weight is sharded over all ranks as it is read. Every rank must call this.
        tp_size: tensor-parallel size; each rank reads its own shards.

    Raises:
        PipelineError: no safetensors, weights missing, code not allowed, or a model without tensor parallelism.
    """
    source = source_of(model_input)
    refuse_unsafe(source)
    weights = WeightOptions(dtype=dtype, quantize=quantize, attention=attention, tp_size=tp_size)
    extra = _loading(source, trust_remote_code, weights)
    with quiet(), explained(source, "model"), zero3_loading(zero3):
        model, info = AutoModelForCausalLM.from_pretrained(
            source.place,
            revision=source.revision,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **extra,
        )
    _refuse_missing(source, info["missing_keys"], allowed=())
    _compute_as_in_training(model)
    count_predicted_tokens(model)
    return finish_sharding(model) if tp_size > 1 else model


def count_predicted_tokens(model: PreTrainedModel) -> None:
    """Have transformers' Trainer count only predicted tokens of a causal model: the first token of a row is none.

    The Trainer recognises causal models by their class name, which fails for GPT2LMHeadModel: it would divide loss and
    gradients by one token per row too many (transformers 5.23).
    """
    if getattr(model, "loss_type", None) is None:
        model.loss_type = "ForCausalLM"


def load_deferred_causal_lm(
    model_input: ResolvedInput, trust_remote_code: bool = False, *, attention: str | None = None
) -> tuple[Any, Stored | None]:
    """Build a causal language model in fp32 without weights; return it with the `Stored` that reads them from files.

    From a hub, with code of the repository, or if the files use other weight names than the model, all weights are
    loaded, and the second value is None.

    Raises:
        PipelineError: as `load_causal_lm`.
    """
    source = source_of(model_input)
    refuse_unsafe(source)
    if source.is_folder and not trust_remote_code:
        deferred = Stored(tensor_files(Path(source.place)))
        extra = {} if attention is None else {"attn_implementation": attention}
        with quiet(), explained(source, "model"), deferred, no_init_weights():
            config = AutoConfig.from_pretrained(source.place)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **extra)
            model.tie_weights()
            if (Path(source.place) / "generation_config.json").is_file():
                model.generation_config = GenerationConfig.from_pretrained(source.place)
        count_predicted_tokens(model)
        if deferred.knows(model):
            return model, deferred
    return load_causal_lm(model_input, "fp32", trust_remote_code, attention=attention), None


def load_reward_model(
    model_input: ResolvedInput,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    trust_remote_code: bool = False,
    **weights: Unpack[WeightOptions],
) -> Any:
    """Load a model that gives one score per sequence, from a reward artifact or from a causal language model.

    From a causal model the head is new: normal with variance 1 / (hidden size + 1), drawn from ``seed``, so that
    scores start small. The score is read at the last token that is not padding.

    Args:
        model_input: artifact, folder or hub id.
        tokenizer: gives the padding id.
        seed: seed of a new head.
        trust_remote_code: whether the repository may run its own Python.
        weights: how the weights are held, field by field; with `zero3` the head is not sharded.

    Raises:
        PipelineError: as `load_causal_lm`, or it is an implicit reward, which has no head.

    Reference: Stiennon et al. 2020, arXiv:2009.01325, appendix B (initial weights of the head).
    """
    source = source_of(model_input)
    refuse_unsafe(source)
    if source.is_folder and (Path(source.place) / SETTINGS_FILE).is_file():
        statement = f"`{model_input.ref}` is an implicit reward: two language models, without a head that gives a score"
        raise PipelineError(Problem(statement, "a language model or a reward model", "name its policy"))
    zero3, extra = weights.get("zero3"), _loading(source, trust_remote_code, weights)
    with quiet(), explained(source, "model"), zero3_loading(zero3):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source.place,
            revision=source.revision,
            num_labels=1,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **extra,
        )
    head_is_new = "score.weight" in info["missing_keys"]
    _refuse_missing(source, info["missing_keys"], allowed=("score.weight",))
    if zero3 is not None:
        model.score.weight = torch.nn.Parameter(gather_parameter(model.score.weight))
    if weights.get("quantize") is None:
        model.score.float()  # half precision would round the score too coarsely
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    _compute_as_in_training(model)
    if head_is_new:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.empty(model.score.weight.shape, dtype=torch.float32)
        weight.normal_(0.0, (weight.shape[-1] + 1) ** -0.5, generator=generator)
        with torch.no_grad():
            model.score.weight.copy_(weight)
    return finish_sharding(model) if weights.get("tp_size", 1) > 1 else model


def _loading(source: Source, trust_remote_code: bool, weights: WeightOptions) -> KeywordArguments:
    """Return the arguments of `from_pretrained` for dtype, quantization, attention and tensor parallelism.

    Raises:
        PipelineError: see `tp_config` and `_quantization`.
    """
    dtype, quantize = weights.get("dtype", "fp32"), weights.get("quantize")
    extra: KeywordArguments = {"dtype": _DTYPES[dtype]}
    if quantize is not None:
        extra["quantization_config"] = _quantization(quantize, dtype)
    attention, tp_size = weights.get("attention"), weights.get("tp_size", 1)
    if attention is not None:
        extra["attn_implementation"] = attention
    if tp_size > 1:
        extra["distributed_config"] = tp_config(_config(source, trust_remote_code), tp_size)
    return extra


def _compute_as_in_training(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for a CPU's bf16 in evaluation mode.

    Otherwise the logits of a reference or a rollout differ from those of training by about 0.01, and widths that are no
    multiple of 64 fail (bitsandbytes 0.50).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _quantization(quantize: Quantize, dtype: Precision) -> BitsAndBytesConfig:
    if find_spec("bitsandbytes") is None:
        raise PipelineError(
            Problem(f"adapter.quantize is {quantize}", "the package bitsandbytes", "pip install 'trueup[quantize]'")
        )
    heads = ["lm_head", "score"]  # the loss is computed from their output, and a reward model's head is trained
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=heads)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=heads,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_DTYPES[dtype],
    )


def refuse_unsafe(source: Source) -> None:
    """Check that a folder has safetensors.

    Raises:
        PipelineError: it has weights in another format, an adapter alone, or none.
    """
    if not source.is_folder:
        return
    folder = Path(source.place)
    if any(folder.glob("*.safetensors")):
        return
    unsafe = sorted(path.name for pattern in _UNSAFE for path in folder.glob(pattern))
    if unsafe:
        statement, remedy = f"{folder} holds only {unsafe[0]}", "convert the weights to safetensors"
    elif (folder / "adapter_model.safetensors").exists() or (folder / "adapter_config.json").exists():
        statement, remedy = f"{folder} holds an adapter alone", "merge it into its base and name that folder"
    else:
        statement, remedy = f"{folder} holds no weights", "name the folder of a model"
    raise PipelineError(Problem(statement, "model.safetensors", remedy))


def _refuse_missing(source: Source, missing: set[str], *, allowed: tuple[str, ...]) -> None:
    missing_names = sorted(set(missing) - set(allowed))
    if missing_names:
        statement = (
            f"the weights of {source.place} lack {counted(len(missing_names), 'tensor')}, first {missing_names[0]}"
        )
        raise PipelineError(
            Problem(statement, "all tensors of the architecture in config.json", "download the model again")
        )


@contextmanager
def explained(source: Source, what: str) -> Iterator[None]:
    """Convert the errors of `transformers` for a broken or unreachable repository into one-line problems."""
    try:
        yield
    except (OSError, ValueError, json.JSONDecodeError) as error:
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            statement = f"{source.place} runs Python of its own to load its {what}"
            remedy = "read that code, then set `trust_remote_code: true` in the recipe"
            raise PipelineError(Problem(statement, "not allowed by this recipe", remedy)) from error
        if "safetensors" in text:
            remedy = "convert the weights to safetensors"
            raise PipelineError(
                Problem(f"{source.place} has no safetensors weights", "model.safetensors", remedy)
            ) from error
        reason = text.split(". ")[0][:200]  # the rest is advice for callers of transformers
        expected = "a folder or a hub id with one" if source.is_folder else "a reachable hub id, or a local folder"
        raise PipelineError(Problem(f"cannot load the {what} of {source.place}: {reason}", expected)) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and warnings of `transformers` inside the context."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
