"""What the tokenizers of two stages must agree on: vocabulary, chat template, special tokens.

Owns the comparison, and the check that a conversation trains the end token. Torch-free: a tokenizer is passed in, or
its folder is read as JSON, so a plan can compare artifacts without loading them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import Problem
from pipeline.models.tokenizer.encoding import TextEncoder
from pipeline.models.tokenizer.template import ChatTemplate, Messages, TemplateFaultError, no_template, training_variant
from pipeline.plain_data import JsonObject

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def growth_note(rows: int, tokens: int) -> str:
    """Return the note that an embedding of ``rows`` rows was resized to ``tokens`` rows."""
    return f"the embedding grows from {rows} rows to {tokens}, one for each token; the new ones are the mean"


def growth_problem(rows: int, tokens: int) -> Problem:
    """Return the problem of an embedding of ``rows`` rows that cannot be resized to ``tokens`` rows."""
    remedy = "run an sft stage with `compute` of one process and without `quantize` first, which adds the rows"
    statement = f"the tokenizer has {tokens} tokens and the model's embedding {rows} rows"
    return Problem(statement, "a row for every token", remedy)


@dataclass(frozen=True)
class TokenizerFacts:
    """What two tokenizers must have in common for the weights of one to be used with the other.

    Attributes:
        name: stage or folder, for messages.
        vocabulary: hash of tokens, ids and merges.
        entries: size of the vocabulary, added tokens included.
        template: hash of the chat template; empty when there is none.
        special: ``bos``, ``eos`` and ``pad`` to token text, empty when unset.
    """

    name: str
    vocabulary: str
    entries: int
    template: str
    special: dict[str, str]


def facts(tokenizer: PreTrainedTokenizerBase, name: str) -> TokenizerFacts:
    """Return the facts of a loaded tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    document = json.loads(backend.to_str()) if backend is not None else {"model": {"vocab": tokenizer.get_vocab()}}
    special = {key: str(getattr(tokenizer, f"{key}_token") or "") for key in ("bos", "eos", "pad")}
    vocabulary, entries = _vocabulary(document)
    return TokenizerFacts(name, vocabulary, entries, _template(tokenizer.chat_template), special)


def facts_of_folder(folder: Path, name: str) -> TokenizerFacts | None:
    """Return the facts of a saved tokenizer, or None when the folder has no ``tokenizer.json``."""
    if not (folder / "tokenizer.json").is_file():
        return None
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings: JsonObject = {}
    if (folder / "tokenizer_config.json").is_file():
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = settings.get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    special = {key: _token_text(settings.get(f"{key}_token")) for key in ("bos", "eos", "pad")}
    vocabulary, entries = _vocabulary(document)
    return TokenizerFacts(name, vocabulary, entries, _template(template), special)


def disagreements(first: TokenizerFacts, second: TokenizerFacts) -> list[Problem]:
    """Return a problem for each difference between two tokenizers that must be the same."""
    problems = []
    remedy = f"start `{second.name}` and `{first.name}` from the same tokenizer"
    if first.vocabulary != second.vocabulary:
        statement = f"the vocabulary of `{second.name}` ({second.entries} entries)"
        problems.append(Problem(statement, f"that of `{first.name}` ({first.entries} entries)", remedy))
    if first.template != second.template:
        statement = f"the chat template of `{second.name}` is {'another one' if second.template else 'missing'}"
        expected = f"that of `{first.name}`" if first.template else f"none, as in `{first.name}`"
        problems.append(Problem(statement, expected, remedy))
    for key, label in (("eos", "end"), ("bos", "start")):  # the padding token may differ: padding is never attended to
        if first.special[key] != second.special[key]:
            statement = f"the {label} token of `{second.name}` is {second.special[key] or 'unset'}"
            expected = f"{first.special[key] or 'unset'} as in `{first.name}`"
            problems.append(Problem(statement, expected, remedy))
    return problems


def pair_problem(policy: TokenizerFacts, reference: TokenizerFacts) -> Problem | None:
    """Return the problem of a policy and a reference whose tokenizers differ: their probabilities are of other tokens.

    Args:
        policy: facts of the policy's tokenizer.
        reference: facts of the reference's tokenizer.
    """
    differences = disagreements(policy, reference)
    if not differences:
        return None
    statement = f"policy `{policy.name}` and reference `{reference.name}` have different tokenizers"
    remedy = "name the model that the policy was trained from as `reference`"
    return Problem(f"{statement}: {differences[0].found}", differences[0].expected, remedy)


def end_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | PeftModel | None = None) -> list[int]:
    """Return the token ids that end a response.

    These are the tokenizer's end token, the token with which the chat template ends a turn, and the end tokens of the
    model's generation config.
    """
    ids = [int(tokenizer.eos_token_id)]
    turn = ChatTemplate(TextEncoder(tokenizer)).end_token() if tokenizer.chat_template else None
    more = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    for token in [*([] if turn is None else [turn]), *([more] if isinstance(more, int) else list(more or []))]:
        if token not in ids:
            ids.append(int(token))
    return ids


def eos_is_learned(tokenizer: PreTrainedTokenizerBase, messages: Messages, tools: Sequence[Any] | None = None) -> bool:
    """Return whether every assistant turn, as the template renders it, trains a final end token.

    White space after the end token does not count. If the template ends turns without a control token, encoding adds
    the tokenizer's end token to the last turn, which counts too.
    """
    template = ChatTemplate(TextEncoder(tokenizer))
    try:
        texts = template.rendered(messages, tools)
    except TemplateFaultError:
        return False
    control = tuple(template.encoder.control)
    spoken = [
        (rendered, rendered.text.text[span.start : span.end])
        for rendered in texts
        for span in rendered.answers
        if span.end
    ]
    return bool(spoken) and all(answer.rstrip().endswith(control) or rendered.adds_end for rendered, answer in spoken)


def unseen_opening(tokenizer: PreTrainedTokenizerBase, messages: Messages, tools: Sequence[Any] | None = None) -> str:
    """Return what the generation prompt adds, if the conversation's own last answer does not begin with it.

    An empty string means that it does.
    """
    template = ChatTemplate(TextEncoder(tokenizer))
    chat, last = template.chat(messages, tools), len(messages) - 1
    generation_prompt = template.text(chat, last, opens_answer=True).text
    if template.text(chat).text.startswith(generation_prompt):
        return ""
    return generation_prompt.removeprefix(template.text(chat, last).text)


def conversation_problems(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, tools: Sequence[Any] | None = None
) -> list[Problem]:
    """Return what is wrong with how a conversation is rendered: no template, end not trained, doubled tokens.

    Args:
        tokenizer: with its chat template.
        messages: a conversation that ends with an assistant turn.
        tools: tools the assistant may call.
    """
    if not tokenizer.chat_template:
        return [no_template()]
    template = ChatTemplate(TextEncoder(tokenizer))
    chat = template.chat(messages, tools)
    try:
        full_text = template.text(chat)
        prompt = template.text(chat, len(messages) - 1, opens_answer=True)
    except TemplateFaultError as fault:
        return [Problem(f"a conversation {fault}")]
    problems = []
    if not eos_is_learned(tokenizer, messages, tools):
        statement = f"the chat template does not end the assistant's turn with {tokenizer.eos_token}"
        expected = "the tokenizer's end token as part of what is trained, or no response would ever end"
        remedy = "set the tokenizer's eos_token to the template's, or put it inside {% generation %}"
        problems.append(Problem(statement, expected, remedy))
    ids = template.encoder.encode_one(full_text).ids
    for token_id, label in ((tokenizer.eos_token_id, "end"), (tokenizer.bos_token_id, "start")):
        if token_id is not None and any(a == b == token_id for a, b in pairwise(ids)):
            token = tokenizer.convert_ids_to_tokens(token_id)
            statement, remedy = f"the {label} token {token} comes twice in a row", "write it once in the template"
            problems.append(Problem(statement, "once", remedy))
    # Where trl ships a training variant of the template, the trained tokens are known even if the prompt is no prefix.
    if not full_text.text.startswith(prompt.text) and training_variant(template.source(tools)) is None:
        statement = "the chat template renders a prompt differently once the answer follows"
        problems.append(
            Problem(statement, "the prompt as a prefix of the conversation", "use a template without rewriting")
        )
    return problems


def _vocabulary(document: JsonObject) -> tuple[str, int]:
    model = document.get("model", {})
    vocab = model.get("vocab", {})
    # Unigram vocabularies are a list of [piece, score]: the position is the id.
    pairs = {str(piece): i for i, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
    pairs |= {token["content"]: token["id"] for token in document.get("added_tokens", [])}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])]
    canonical = json.dumps([sorted(pairs.items()), merges], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest(), len(pairs)


def _template(template: object) -> str:
    if not template:
        return ""
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _token_text(token: object) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token or "")
