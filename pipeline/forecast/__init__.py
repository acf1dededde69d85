"""What a plan will need before it runs: parameters, operations, memory, hours, cost; and whether it fits. No torch."""

from __future__ import annotations

from pipeline.forecast.remedies import fitting_problems, resolve_auto
from pipeline.forecast.stages import Forecast, forecasts

__all__ = ["Forecast", "fitting_problems", "forecasts", "resolve_auto"]
