"""Forecasts parameters, operations, memory, hours and cost of a plan, and whether each stage fits. Imports no torch."""

from __future__ import annotations

from pipeline.preflight.forecast.needs import forecasts
from pipeline.preflight.forecast.remedies import fitting_problems, resolve_auto
from pipeline.preflight.forecast.stages import Forecast

__all__ = ["Forecast", "fitting_problems", "forecasts", "resolve_auto"]
