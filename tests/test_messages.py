"""Messages read as sentences: *X is A; expected B. Do C*."""

from __future__ import annotations

import pytest

from pipeline.errors import Problem


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("file is UTF-16", "UTF-8"), "file is UTF-16; expected UTF-8"),
        (
            Problem("`sft` has no chat template", "one, to render conversations", "put a chat_template.jinja there"),
            "`sft` has no chat template; expected one, to render conversations. Put a chat_template.jinja there",
        ),
        (
            Problem("beta is -0.1", "must be > 0", "", "r.yaml:3", "dpo"),
            "r.yaml:3 stage dpo: beta is -0.1; it must be > 0",
        ),
        (Problem("no tag `sft:olt`", "tags are sft:old"), "no tag `sft:olt`; tags are sft:old"),
        (Problem("no artifact `x`", "`x` has no versions"), "no artifact `x`; `x` has no versions"),
        (Problem("unknown key `sed`", "", "did you mean `seed`?"), "unknown key `sed`. Did you mean `seed`?"),
        (Problem("no faiss", "", "pip install 'trueup[x]'"), "no faiss. Run `pip install 'trueup[x]'`"),
        (Problem("it broke.", "", "train.beta is the word"), "it broke. train.beta is the word"),
    ],
)
def test_a_message_is_made_of_sentences(problem: Problem, text: str) -> None:
    assert str(problem) == text
