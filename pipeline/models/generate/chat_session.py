"""Chats with a checkpoint, or continues a text; replies are streamed.

Owns what `trueup chat` and `trueup generate` do between the terminal and the model: loading it, history, the chat
template, the choice of decoding, and incremental detokenization. Knows nothing of terminals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import PipelineError, Problem
from pipeline.models.forward import context_limit
from pipeline.models.generate.decode import GenerationSettings, beam_search, stream
from pipeline.models.generate.sampling import Sampling
from pipeline.models.load.pretrained import load_causal_lm, load_tokenizer
from pipeline.models.tokenizer.contract import end_ids
from pipeline.models.tokenizer.encoding import TextEncoder
from pipeline.models.tokenizer.template import ChatTemplate, TemplateFaultError
from pipeline.stage import ResolvedInput

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Message = dict[str, str]

_HALF_CHARACTER = "\ufffd"
"""What a tokenizer decodes the first bytes of a character to, while its last bytes are missing."""


@dataclass(frozen=True)
class ReplyOptions:
    """How a reply is decoded.

    Attributes:
        max_new_tokens: longest reply, in tokens.
        greedy: take the most likely token each time.
        beams: more than one searches that many continuations at once; nothing is then sampled or streamed.
        temperature: divides the logits.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches this; 1 keeps all.
        seed: of the random numbers; the same seed and the same history give the same reply.
    """

    max_new_tokens: int = 256
    greedy: bool = False
    beams: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    @property
    def sampling(self) -> Sampling:
        """The options of `next_tokens`."""
        return Sampling(greedy=self.greedy, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


def load_checkpoint(source: ResolvedInput, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Load a checkpoint as ``(model, tokenizer)``, with the model on a GPU when there is one.

    Raises:
        PipelineError: see `pipeline.models.load.pretrained`.
    """
    tokenizer = load_tokenizer(source, trust_remote_code)
    model = load_causal_lm(source, "fp32", trust_remote_code)
    return model.to("cuda") if torch.cuda.is_available() else model, tokenizer


def reply(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    options: ReplyOptions,
) -> Iterator[str]:
    """Yield the assistant's next turn as pieces of text.

    Args:
        model: a causal language model.
        tokenizer: with a chat template.
        messages: the conversation so far, its last turn the user's.
        options: how to decode.

    Raises:
        PipelineError: the tokenizer has no chat template, an option is out of range, or the conversation does not fit.
    """
    yield from _answer(model, tokenizer, _prompt_ids(tokenizer, messages), options, turn=len(messages))


def complete(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, text: str, options: ReplyOptions
) -> Iterator[str]:
    """Yield the model's continuation of ``text``, without a chat template, as pieces of text.

    The name of a control token in ``text`` is encoded as text.

    Raises:
        PipelineError: the text is empty or does not fit, or an option is out of range.
    """
    encoder = TextEncoder(tokenizer)
    ids = [*encoder.prefix, *encoder.encode_one(encoder.content(text)).ids] if text else []
    yield from _answer(model, tokenizer, ids, options, turn=0)


@dataclass
class ChatSession:
    """A conversation with its history.

    Attributes:
        model: a causal language model.
        tokenizer: with a chat template.
        options: how replies are decoded; may be replaced between turns.
        system: system message; None for none.
        history: turns so far, without the system message.
        forgotten: turns dropped from the front because the model's context was full.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    options: ReplyOptions = ReplyOptions()
    system: str | None = None
    history: list[Message] = field(default_factory=list)
    forgotten: int = 0

    def say(self, text: str) -> Iterator[str]:
        """Add the user's turn and yield the reply as pieces of text.

        The yielded text enters the history, also when the caller stops early. If decoding fails before the first
        piece, the history stays as it was.

        Raises:
            PipelineError: as `reply`.
        """
        self.history.append({"role": "user", "content": text})
        pieces: list[str] = []
        answered = False
        try:
            for piece in reply(self.model, self.tokenizer, self._fitting(), self.options):
                pieces.append(piece)
                yield piece
            answered = True
        finally:
            if answered or pieces:
                self.history.append({"role": "assistant", "content": "".join(pieces)})
            else:
                self.history.pop()

    def reset(self) -> None:
        """Forget the conversation; the system message stays."""
        self.history.clear()
        self.forgotten = 0

    def _fitting(self) -> list[Message]:
        """Drop the oldest exchanges until the prompt leaves room for a reply."""
        limit = context_limit(self.model)
        first = [{"role": "system", "content": self.system}] if self.system else []
        room = 0 if limit is None else min(self.options.max_new_tokens, limit // 4)
        while limit is not None and len(self.history) > 2:
            if len(_prompt_ids(self.tokenizer, [*first, *self.history])) + room <= limit:
                break
            del self.history[:2]
            self.forgotten += 2
        return [*first, *self.history]


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    if not tokenizer.chat_template:
        remedy = "use `trueup generate`, or a checkpoint of an sft stage"
        raise PipelineError(Problem("this checkpoint's tokenizer has no chat template", "one, to chat", remedy))
    template = ChatTemplate(TextEncoder(tokenizer))
    try:
        text = template.prompt(messages)
    except TemplateFaultError as fault:
        raise PipelineError(Problem(f"the conversation {fault}")) from fault
    return template.encoder.encode_one(text).ids


def _answer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[int],
    options: ReplyOptions,
    *,
    turn: int,
) -> Iterator[str]:
    ends = end_ids(tokenizer, model)
    if options.beams < 1:
        raise PipelineError(Problem(f"beams is {options.beams}", "must be >= 1", "1 is no beam search"))
    settings = GenerationSettings(
        options.max_new_tokens, ends, tokenizer.pad_token_id, sampling=options.sampling, seed=options.seed
    )
    if options.beams > 1:
        responses = beam_search(model, [prompt], settings, beams=options.beams)
        yield str(tokenizer.decode(responses[0], skip_special_tokens=True))
        return
    yield from _text_pieces(tokenizer, stream(model, prompt, settings, row_id=turn))


def _text_pieces(tokenizer: PreTrainedTokenizerBase, tokens: Iterator[int]) -> Iterator[str]:
    ids: list[int] = []
    shown = ""
    text = ""
    for token in tokens:
        ids.append(token)
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        if not text.endswith(_HALF_CHARACTER) and len(text) > len(shown):
            yield text[len(shown) :]
            shown = text
    if len(text) > len(shown):
        yield text[len(shown) :]
