"""Fuzz recipes or rows: ``python tests/fuzz recipes --count 10000``; ``--only N`` tries one case again and shows it."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from fuzzing import case_of, fuzz, report
from recipe_cases import RecipeCases
from row_cases import RowCases

TARGETS = {"recipes": RecipeCases, "rows": RowCases}


def main() -> int:
    """Run the fuzzer; return 1 with a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--only", type=int, metavar="N")
    chosen = parser.parse_args()
    numbers = range(chosen.count) if chosen.only is None else range(chosen.only, chosen.only + 1)
    with tempfile.TemporaryDirectory() as folder:
        target = TARGETS[chosen.target](Path(folder))
        if chosen.only is not None:
            print(case_of(target, chosen.seed, chosen.only).encode("utf-8", "backslashreplace").decode())
        outcomes = fuzz(target, chosen.seed, numbers)
    print(report(outcomes, f"{sys.executable} tests/fuzz {chosen.target} --seed {chosen.seed} --only {{number}}"))
    return 1 if outcomes.findings else 0


if __name__ == "__main__":
    sys.exit(main())
