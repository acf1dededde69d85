"""What `gsm8k-grpo.yaml` pays for: the right final number.

GSM8K's answers end with ``#### 72``. A response counts when its last ``####`` is followed by that number, however it is
written: ``72``, ``72.0``, ``$72``, ``1,072``.
"""

import re

_NUMBER = re.compile(r"####\s*\$?\s*(-?[\d,]*\.?\d+)")


def final_number(text):
    """Return the number after the last ``####``, or None."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def correct(completions, answer, **columns):
    """Return 1.0 for each response with the right final number, 0.0 for the others."""
    said = [final_number(turns[-1]["content"]) for turns in completions]
    return [
        float(number is not None and number == final_number(right)) for number, right in zip(said, answer, strict=True)
    ]
