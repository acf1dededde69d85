"""Whether a forecast of requests is within what the settings of a server allow."""

from __future__ import annotations

from pipeline.endpoints.settings import ServerSettings
from pipeline.errors import Problem
from pipeline.kind.traits import RequestForecast


def cap_problem(settings: ServerSettings, where: str, forecast: RequestForecast, fewer: str) -> Problem | None:
    """Return a problem if a forecast is over what the settings allow.

    Args:
        settings: the settings of the server.
        where: key of the recipe that holds them.
        forecast: the calls and tokens.
        fewer: what a user does to have fewer of them.
    """
    remedy = f"raise it, or {fewer}"
    if forecast.sent > settings.max_calls:
        return Problem(f"{where}.max_calls is {settings.max_calls:,}", f"there are {forecast}", remedy)
    most = settings.max_tokens_total
    if most is not None and forecast.tokens > most:
        return Problem(f"{where}.max_tokens_total is {most:,}", f"there are {forecast}", remedy)
    return None
