"""Renders conversations as text with the chat template, and locates the assistant's answers in the text.

Owns which of several named templates is used, what a template refuses or drops, which spans are the assistant's, and
which token ends a turn. Knows nothing of token ids beyond control tokens. Torch-free.

Answers are located in one of three ways, in this order:

1. by the template's ``{% generation %}`` markers;
2. without markers, an answer is what its turn adds to the rendered prompt; if the template renders earlier turns
   differently once a later turn follows, each answer gets a text of its own, as it was when it was generated;
3. by the markers of the training variant that trl ships for the template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import PipelineError, Problem, counted
from pipeline.models.tokenizer.encoding import Text, TextEncoder, own_letters
from pipeline.plain_data import JsonObject, JsonView

Messages = Sequence[JsonView]

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

SAMPLE = ({"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"})
"""Conversation that is rendered to see how a template ends the assistant's turn."""

_UNSET = {"bos_token": "", "eos_token": ""}
"""Values of template variables for special tokens that the tokenizer does not have."""

_OWN_KEYS = ("train",)
"""Keys of a turn that are not passed to the template."""


class TemplateFaultError(Exception):
    """A conversation cannot be rendered; the message completes a sentence that begins with "row"."""


class Span(NamedTuple):
    """A half-open range of characters in a text."""

    start: int
    end: int


class Rendered(NamedTuple):
    """A rendered text to train on.

    Attributes:
        text: the conversation, or its first turns.
        answers: spans of the assistant's answers that are trained on, in order.
        adds_end: whether an end token must be added, because the template ends the last answer without a control token.
    """

    text: Text
    answers: list[Span]
    adds_end: bool


class Chat(NamedTuple):
    """Input of a template: turns and tools in which private characters replace the names of control tokens.

    Attributes:
        messages: turns.
        tools: tools, or None.
        spelled: private characters, and the text each stands for.
    """

    messages: list[JsonObject]
    tools: list[Any] | None
    spelled: dict[str, str]


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer.

    Attributes:
        encoder: encoder of the tokenizer.
    """

    encoder: TextEncoder

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that the template belongs to."""
        return self.encoder.tokenizer

    def source(self, tools: Sequence[Any] | None = None) -> str:
        """Return the Jinja source; of several named templates the one that transformers would use.

        Raises:
            PipelineError: the tokenizer has no chat template, or none of the expected name.
        """
        template = self.tokenizer.chat_template
        if isinstance(template, dict):
            name = "tool_use" if tools and "tool_use" in template else "default"
            if name not in template:
                problem = Problem(
                    f"the tokenizer's chat templates are {', '.join(sorted(template))}",
                    "one of the name default",
                    "set `chat_template` in the sft stage to the one that is meant",
                )
                raise PipelineError(problem)
            template = template[name]
        if not template:
            raise PipelineError(no_template())
        return str(template)

    def chat(self, messages: Messages, tools: Sequence[Any] | None = None) -> Chat:
        """Return turns and tools, with control tokens that their text spells replaced by private characters."""
        turns = [{key: value for key, value in turn.items() if key not in _OWN_KEYS} for turn in messages]
        tool_list = list(tools) if tools else None
        texts = [turn["content"] for turn in turns if isinstance(turn.get("content"), str)]
        if any(len(turn) > 2 for turn in turns) or tool_list:
            texts = list(_strings([turns, tool_list]))
        if not any(map(self.encoder.spells, texts)):
            return Chat(turns, tool_list, {})
        spelled = own_letters("".join(texts))
        shielded = _mapped([turns, tool_list], lambda text: self.encoder.shield(text, spelled))
        return Chat(shielded[0], shielded[1], spelled)

    def text(self, chat: Chat, until: int | None = None, *, opens_answer: bool = False, source: str = "") -> Text:
        """Render a chat.

        Args:
            chat: turns and tools.
            until: number of turns to render; all when omitted.
            opens_answer: whether to add the generation prompt.
            source: Jinja source; the tokenizer's own when omitted.

        Raises:
            TemplateFaultError: the template raised an error.
        """
        return Text(self._rendered(chat, until, opens_answer, source, marks=False)[0], chat.spelled)

    def prompt(self, messages: Messages, tools: Sequence[Any] | None = None) -> Text:
        """Render a prompt, with the generation prompt at its end.

        Raises:
            TemplateFaultError: the template raised an error, or dropped something.
        """
        chat = self.chat(messages, tools)
        text = self.text(chat, opens_answer=True)
        self._refuse_dropped(chat, messages, [], [Rendered(text, [], adds_end=False)])
        return text

    def _rendered(
        self, chat: Chat, until: int | None, opens_answer: bool, source: str, *, marks: bool
    ) -> tuple[str, list[Any]]:
        # checks use this module without transformers
        from transformers.utils.chat_template_utils import render_jinja_template

        source = source or self.source(chat.tools)
        try:
            texts, marked = render_jinja_template(
                conversations=[chat.messages[:until]],
                tools=chat.tools,
                chat_template=source,
                add_generation_prompt=opens_answer,
                return_assistant_tokens_mask=marks,
                **{**_UNSET, **self.tokenizer.special_tokens_map},
            )
        except Exception as error:  # a template is somebody else's program and may raise anything
            why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise TemplateFaultError(f"is refused by the chat template, which says: {why}") from error
        return texts[0], list(marked[0]) if marks and marked else []

    def rendered(self, messages: Messages, tools: Sequence[Any] | None = None) -> list[Rendered]:
        """Render a conversation for training on the assistant's turns.

        Returns:
            One text if the template renders every turn the same whatever follows; otherwise as many texts as the
            answers need, in order.

        Raises:
            TemplateFaultError: the template raised an error, dropped something, or the answers cannot be located.
        """
        chat, learnt = self.chat(messages, tools), _trained_turns(messages)
        source = self.source(tools)
        if not learnt:
            raise TemplateFaultError("has no turn of the assistant to learn from, expected one without `train: false`")
        if GENERATION.search(source):
            texts = self._by_marks(chat, messages, learnt, source)
        else:
            texts = self._by_turns(chat, learnt) or self._by_variant(chat, messages, learnt, source)
        if not texts:
            raise TemplateFaultError(
                "cannot be masked: the chat template begins an answer otherwise than its generation prompt does, "
                "expected a template with {% generation %} markers, or one that only adds to what it wrote"
            )
        self._refuse_dropped(chat, messages, learnt, texts)
        return texts

    def reply(self, prompt: Messages, response: Messages, tools: Sequence[Any] | None = None) -> tuple[Text, Rendered]:
        """Render a prompt with the generation prompt, and the prompt with its response as the only answer.

        Raises:
            TemplateFaultError: the template raised an error, dropped something, or the rendered prompt is not the
                beginning of prompt and response.
        """
        chat = self.chat([*prompt, *response], tools)
        prompt_text, full_text = self.text(chat, len(prompt), opens_answer=True), self.text(chat)
        if not full_text.text.startswith(prompt_text.text):
            raise TemplateFaultError(
                "is rendered otherwise once the answer follows: the text of its prompt is not the beginning of prompt "
                "and answer, expected a chat template that only adds to what it wrote"
            )
        rendered = self._cut_at_end_token(full_text, [Span(len(prompt_text.text), len(full_text.text))])
        learnt = [len(prompt) + i for i in _trained_turns(response)]
        self._refuse_dropped(chat, [*prompt, *response], learnt, [rendered], whole=True)
        return prompt_text, rendered

    def _by_marks(self, chat: Chat, messages: Messages, learnt: list[int], source: str) -> list[Rendered]:
        text, marked = self._rendered(chat, None, False, source, marks=True)
        spans = [Span(int(start), int(end)) for start, end in marked]
        spoken = [i for i, turn in enumerate(messages) if turn["role"] == "assistant"]
        if len(learnt) < len(spoken):
            if len(spans) != len(spoken):
                raise TemplateFaultError(
                    f"has {counted(len(spoken), 'turn')} of the assistant and {counted(len(spans), 'part')} between "
                    "the template's markers, expected one for each turn, since some are not to be learnt"
                )
            spans = [span for span, turn in zip(spans, spoken, strict=True) if turn in learnt]
        return [self._cut_at_end_token(Text(text, chat.spelled), spans)._replace(adds_end=False)] if spans else []

    def _by_turns(self, chat: Chat, learnt: list[int]) -> list[Rendered]:
        """Locate each answer as what its turn adds to the rendered prompt.

        Returns an empty list if the text up to an answer does not begin with the answer's rendered prompt.
        """
        texts: list[tuple[Text, list[Span]]] = []
        for turn in reversed(learnt):
            prompt_text = self.text(chat, turn, opens_answer=True).text
            turn_text = self.text(chat, turn + 1).text
            if not turn_text.startswith(prompt_text):
                return []
            if not (texts and texts[-1][0].text.startswith(turn_text)):
                conversation = Text(turn_text, chat.spelled)
                if not texts and turn + 1 < len(chat.messages):
                    full_text = self.text(chat)
                    conversation = full_text if full_text.text.startswith(turn_text) else conversation
                texts.append((conversation, []))
            texts[-1][1].insert(0, Span(len(prompt_text), len(turn_text)))
        return [self._cut_at_end_token(text, spans) for text, spans in reversed(texts)]

    def _by_variant(self, chat: Chat, messages: Messages, learnt: list[int], source: str) -> list[Rendered]:
        variant = training_variant(source)
        if variant is None or self.text(chat).text != self.text(chat, source=variant).text:
            return []
        return self._by_marks(chat, messages, learnt, variant)

    def _cut_at_end_token(self, text: Text, spans: list[Span]) -> Rendered:
        """End each answer at its end token; note whether the last answer has none."""
        ended, adds_end = [], False
        for span in spans:
            said = text.text[span.start : span.end].rstrip()
            adds_end = not said.endswith(tuple(self.encoder.control))
            ended.append(span if adds_end else Span(span.start, span.start + len(said)))
        return Rendered(text, ended, adds_end)

    def _refuse_dropped(
        self, chat: Chat, messages: Messages, learnt: list[int], texts: list[Rendered], *, whole: bool = False
    ) -> None:
        """Raise `TemplateFaultError` if the template silently drops text, tools, tool calls or reasoning."""
        plain = "".join(one.text.text for one in texts)
        for i, turn in enumerate(chat.messages):
            if turn["role"] != "tool" and not _contains(plain, turn.get("content")):
                raise TemplateFaultError(_dropped_message(f"the text of turn {i + 1}", "contents that are plain text"))
        if not chat.tools and all(turn["role"] != "tool" and len(turn) == 2 for turn in chat.messages):
            return
        text = _without_spaces(plain)
        for tool in chat.tools or ():
            name = _name_of(tool)
            if name and _without_spaces(name) not in text:
                raise TemplateFaultError(_dropped_message(f"the tool `{name}`", "tools"))
        said = [_without_spaces(one.text.text[span.start : span.end]) for one in texts for span in one.answers]
        if whole or len(said) != len(learnt):
            said = [text] * len(learnt)
        answers = dict(zip(learnt, said, strict=True))
        for i, turn in enumerate(chat.messages):
            for call in turn.get("tool_calls") or ():
                name = str(call["function"]["name"])
                if _without_spaces(name) not in answers.get(i, text):
                    raise TemplateFaultError(_dropped_message(f"the call of `{name}` in turn {i + 1}", "tool calls"))
            if turn["role"] == "tool" and _longest_word(turn["content"]) not in text:
                raise TemplateFaultError(_dropped_message(f"the tool's result in turn {i + 1}", "tool turns"))
            thought = turn.get("reasoning_content")
            if i in answers and thought and _without_spaces(thought) not in answers[i]:
                raise TemplateFaultError(_dropped_message(f"the reasoning of turn {i + 1}", "`reasoning_content`"))

    def end_token(self) -> int | None:
        """Return the id of the control token that ends the assistant's turn; None if the template ends it with text."""
        try:
            (rendered,) = self.rendered(SAMPLE)[-1:]
        except (TemplateFaultError, PipelineError):
            return None
        text, span = rendered.text.text, rendered.answers[-1]
        said = text[span.start : span.end].rstrip()
        behind = text[span.end :].lstrip()
        ends = [token for token in self.encoder.control if said.endswith(token)]
        ends = ends or [token for token in self.encoder.control if behind.startswith(token)]
        return self.encoder.control[max(ends, key=len)] if ends else None


def no_template() -> Problem:
    """Return the problem of a tokenizer without a chat template."""
    return Problem(
        "the tokenizer has no chat template",
        "one, to render conversations",
        "give the tokenizer or sft stage a `chat_template`, or take data of plain text, which needs none",
    )


@cache
def training_variant(source: str) -> str | None:
    """Return trl's training variant of a template, with ``{% generation %}`` markers; None if trl has none."""
    spec = find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        return None
    for path in sorted(Path(spec.submodule_search_locations[0], "chat_templates").glob("*.jinja")):
        variant = path.with_name(f"{path.stem}_training.jinja")
        if variant.is_file() and path.read_text(encoding="utf-8").strip() == source.strip():
            return variant.read_text(encoding="utf-8")
    return None


def _trained_turns(messages: Messages) -> list[int]:
    """Return the indices of the assistant's turns that are trained on."""
    return [i for i, turn in enumerate(messages) if turn["role"] == "assistant" and turn.get("train", True)]


def _dropped_message(what: str, words: str) -> str:
    return (
        f"loses {what}: the chat template leaves it out; expected a template that renders {words} "
        "(`chat_template` of the sft stage, or that of the model's folder)"
    )


def _name_of(tool: object) -> str:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return str(function.get("name", "")) if isinstance(function, Mapping) else ""


def _contains(text: str, content: object) -> bool:
    """Whether a text contains a turn's content; a template may trim it and drop the reasoning before an answer."""
    if not isinstance(content, str) or content.strip() in text:
        return True
    return _longest_word(content.rpartition("</think>")[2]) in text


def _without_spaces(text: str) -> str:
    return "".join(text.split())


def _longest_word(text: str) -> str:
    return max(re.findall(r"\w+", text), key=len, default="")


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for pair in value.items() for part in pair for text in _strings(part)]
    if isinstance(value, list | tuple):
        return [text for part in value for text in _strings(part)]
    return []


def _mapped(value: object, change: Callable[[str], str]) -> Any:
    """Return plain data with ``change`` applied to every string, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(str(key)): _mapped(part, change) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(part, change) for part in value]
    return value
