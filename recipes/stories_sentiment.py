"""What `stories-sentiment.yaml` pays for: a story that begins happily, and that goes on.

VADER (Hutto and Gilbert 2014, https://github.com/cjhutto/vaderSentiment) looks words up in a lexicon and returns a
sentiment from -1 to 1. The sum behind it grows with every happy word, so only the first `WORDS` words count: a longer
story gains nothing. A shorter story keeps of a good score only the share of the words that it has, and all of a bad
one, so that a story that ends at once gains nothing either. The base model writes more than `WORDS` words in 60 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

WORDS = 20


@cache
def lexicon() -> Any:
    """Return VADER's analyzer.

    Raises:
        ImportError: vaderSentiment is not installed.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise ImportError("vaderSentiment is not installed; run `pip install 'trueup[stories]'`") from None
    return SentimentIntensityAnalyzer()


def sentiment(completions: Sequence[Any], **columns: Any) -> list[float]:
    """Return the sentiment of the first words of each story, from -1 to 1; short stories gain less."""
    return [_sentiment(_text(completion).split()) for completion in completions]


def _text(completion: Any) -> str:
    """Return a completion as text, whether it is one or a list of messages."""
    return completion if isinstance(completion, str) else "".join(turn["content"] or "" for turn in completion)


def _sentiment(words: Sequence[str]) -> float:
    score = float(lexicon().polarity_scores(" ".join(words[:WORDS]))["compound"])
    return score * min(1.0, len(words) / WORDS) if score > 0 else score
