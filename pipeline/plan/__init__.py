"""The plan: a recipe resolved to an ordered graph, every stage with its fingerprint and what has to run.

Owns what is decided before anything runs; imports no torch. Knows nothing of how a stage works or is run.
"""

from pipeline.plan.fingerprint import digest_of
from pipeline.plan.model import FORCED, Plan, PlannedData, PlannedInput, PlannedStage
from pipeline.plan.planning import make_plan, survey

__all__ = ["FORCED", "Plan", "PlannedData", "PlannedInput", "PlannedStage", "digest_of", "make_plan", "survey"]
