"""Trains a byte-level BPE tokenizer and writes it with its chat template; `config.py` names the papers."""

from __future__ import annotations

import time

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pipeline.errors import PipelineError, Problem, counted
from pipeline.models.tokenizer.chat_format import CHAT_TEMPLATE, END, PAD, SPECIAL_TOKENS
from pipeline.models.tokenizer.contract import conversation_problems
from pipeline.stage import StageContext, StageResult
from pipeline.stages.tokenizer.config import Config

SAMPLE = [
    {"role": "user", "content": "a question"},
    {"role": "assistant", "content": "an answer"},
    {"role": "user", "content": "another"},
    {"role": "assistant", "content": "the last"},
]
"""A conversation with which the chat template is checked: the end of each answer must be trained on."""


def run(ctx: StageContext, config: Config) -> StageResult:
    """Train the tokenizer and save it with its chat template."""
    rows = ctx.load_rows("data")
    texts = [row["text"] for row in rows.train]
    if not texts:
        raise PipelineError(
            Problem("no rows to learn from", "at least one text", "check the data source", stage=ctx.name)
        )
    special = [*SPECIAL_TOKENS, *config.special_tokens]
    ctx.phase(f"learning {config.vocab_size} entries from {counted(len(texts), 'text')}")
    started = time.perf_counter()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_without(texts, special), trainer=trainer, length=len(texts))
    seconds = time.perf_counter() - started
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[token for token in special if token not in (END, PAD)],
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = config.chat_template or CHAT_TEMPLATE
    problems = conversation_problems(wrapped, SAMPLE)
    if problems:
        raise PipelineError(*problems)
    wrapped.save_pretrained(str(ctx.out))
    sample = texts[:2000]
    tokens = sum(len(ids) for ids in wrapped(sample)["input_ids"])
    size = sum(len(text.encode()) for text in sample)
    ratio = size / max(tokens, 1)
    return StageResult(
        metrics={"vocab_size": float(len(wrapped)), "bytes_per_token": round(ratio, 3)},
        tokens=tokens,
        trainer_seconds=seconds,
        rows={"train": len(texts)},
        summary=f"{len(wrapped)} entries, {ratio:.2f} bytes per token",
    )


def _without(texts: list[str], special: list[str]) -> list[str]:
    """Replace special tokens in the texts by spaces, because they are entries already and must not be merged again."""
    cleaned = []
    for text in texts:
        for token in special:
            text = text.replace(token, " ")
        cleaned.append(text)
    return cleaned
