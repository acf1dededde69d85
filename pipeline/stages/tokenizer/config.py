"""Tokenizer: byte-level BPE trained on the corpus, with the chat template every later stage uses.

Reference: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"; byte-level as in
Radford et al. 2019 (GPT-2), section 2.2.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.stage import Data, StageConfig, register_kind


class Config(StageConfig):
    """Configuration of a tokenizer stage.

    Attributes:
        data: text to learn from.
        algorithm: `bpe`, byte-level BPE, is the only one.
        vocab_size: entries, special tokens included.
        min_frequency: pairs seen fewer times are not merged.
        special_tokens: further tokens that are never split.
        chat_template: a Jinja template; default is the one in `pipeline/models/tokenizer/chat_format.py`.
    """

    data: Annotated[str, Data("text")]
    algorithm: Literal["bpe"] = "bpe"
    vocab_size: int = Field(default=8192, ge=300)
    min_frequency: int = Field(default=2, ge=1)
    special_tokens: tuple[str, ...] = ()
    chat_template: str | None = None


register_kind(
    "tokenizer",
    version=1,
    config=Config,
    run="pipeline.stages.tokenizer.run:run",
    makes="tokenizer",
    doc=__doc__,
)
