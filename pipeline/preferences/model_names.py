"""Finds texts that say which model wrote them: they would tell people what a blind comparison hides.

Reference: Chiang et al. 2024, arXiv:2403.04132, section 3 (answers that give the model's identity away are left out).
The names are those of Arena's list, and of models that came later.
"""

from __future__ import annotations

import re

_NAMES = (
    r"chat\s?gpt|gpt-?[2-9]\w*|gpt-oss\w*|open\s?ai|anthropic|claude[- ][1-9.]+|claude (?:instant|opus|sonnet|haiku)|"
    r"gemini (?:pro|ultra|flash|nano|[1-9])|gemma[- ]?[1-9]|mixtral|mistral (?:ai|large|medium|small|[1-9])|"
    r"mistral-?[1-9]|qwen\w*|qwq|qianwen|tongyi|deepseek|kimi k[1-9]|moonshot ai|zhipu|chatglm|glm-[1-9]|baichuan|"
    r"internlm|ernie bot|01\.ai|minimax-m[1-9]|hunyuan|doubao|vicuna|lmsys|laion|open\s?assistant|wizardlm|stablelm|"
    r"smollm\w*|olmo|t[uü]lu[- ]?[1-9]|llama[- ]?[1-9][\w.]*|phi-[1-9]|nemotron|dbrx|command[- ]r\b|grok-?[1-9]|"
    r"通义千问|文心一言|豆包|智谱"
)
"""Names that are no words: they give the model away wherever they stand."""

_WORDS = (
    "claude|gemini|gemma|bard|llama|mistral|falcon|alpaca|koala|dolly|grok|zephyr|palm|copilot|bing|ernie|kimi|hermes|"
    "phi|yi|jamba"
)
"""Names that are also words, or people's names: only of oneself."""

_MAKERS = (
    r"google|meta|microsoft|xai|cohere|deepmind|hugging\s?face|alibaba|baidu|tencent|bytedance|nvidia|databricks|amazon|"
    r"apple|ibm|ai2|allen institute|mistral|moonshot|zhipu|nous"
)
"""Makers of models: only of what they made when it speaks of itself."""

_I_AM = (
    r"i am|i['’]?m|my name is|my name['’]s|call me|(?:talking|speaking|chatting) (?:to|with)|"
    r"ich bin|ich heiße|mein name ist|je suis|je m['’]appelle|mon nom est|soy|me llamo|mi nombre es|sou|eu sou|"
    r"me chamo|meu nome é|sono|mi chiamo|я|меня зовут|我是|我叫|私は|僕は"
)
_OF_ITSELF = r"i|i['’]?m|me|my|myself|ai|assistant|chatbot|model"
_LANGUAGE_MODEL = (
    r"(?:as|i am|i['’]m|i am just|i['’]m just|i am only|i['’]m only)(?: still)?(?: just| only)? an? "
    r"(?:large |advanced |fine-?tuned |finetuned )?(?:ai |artificial intelligence )?(?:large )?language model|"
    r"as an? ai (?:model|assistant|chatbot)|i(?: a|['’])m an? ai (?:model|chatbot)|"
    r"(?:als|ich bin)(?: ein)?(?: großes)? (?:ki-?)?sprachmodell|"
    r"(?:en tant que|je suis un)(?: grand)? modèle (?:d['’]ia |de )?(?:langage|langue)|"
    r"(?:como|soy|sou)(?: um?| un)?(?: gran| grande)? modelo de (?:lenguaje|linguagem)|"
    r"(?:come|sono un) modello linguistico|(?:как|я)(?:\s*[—–-])?(?: большая| ai)? ?языковая модель|"
    r"(?:作为|我是|身为)(?:一个|一款|一名|个)?(?:ai|人工智能|大型|大)*(?:语言模型|助手|助理)|言語モデル(?:として|です)|aiアシスタント(?:として|です)"
)

_MODEL_NAMES = re.compile(
    rf"(?<![a-z0-9])(?:{_NAMES}|{_LANGUAGE_MODEL})(?![a-z])"
    rf"|(?<![a-zà-ÿа-я])(?:{_I_AM})(?![a-zà-ÿа-я])[^.!?\n]{{0,40}}?(?<![a-z])(?:{_WORDS})(?![a-z])"
    rf"|(?<![a-z])(?:{_OF_ITSELF})(?![a-z])[^.!?\n]{{0,60}}?(?:made|trained|developed|created|built|designed) by "
    rf"[^.!?\n]{{0,30}}?(?<![a-z])(?:{_MAKERS}|{_WORDS})(?![a-z])",
    re.IGNORECASE,
)
"""What gives the model away: its name, or what it says of itself and of its maker, in several languages."""

_MARKS = re.compile(r"[*_`]+")
"""Marks of Markdown, which may stand around a name."""


def names_model(text: str) -> bool:
    """Return whether a text names a model or the maker of one as its author."""
    return bool(_MODEL_NAMES.search(_MARKS.sub("", text)))
