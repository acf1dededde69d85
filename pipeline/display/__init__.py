"""How a plan, a run and its end look on a terminal, and as plain lines where there is none.

Owns what a person sees of a run. Knows nothing of how stages run: the runner calls it.
"""

from pipeline.display.ending import print_report, report_data
from pipeline.display.plans import plan_data, print_plan
from pipeline.display.views import Display, LiveDisplay, PlainDisplay, display

__all__ = [
    "Display",
    "LiveDisplay",
    "PlainDisplay",
    "display",
    "plan_data",
    "print_plan",
    "print_report",
    "report_data",
]
