"""The settings of a server with OpenAI's chat completions: address, key, retries and limits. No requests."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field

from pipeline.errors import Problem, agreeing
from pipeline.models.load.kernels import has
from pipeline.plain_data import JsonObject
from pipeline.stage import Runtime, StageConfig

MODULES = ("openai", "tenacity")
INSTALL = "pip install 'trueup[judge]'"
RESERVED = ("model", "messages", "stream", "n", "temperature", "max_tokens", "logprobs", "top_logprobs")
"""Fields of a request that have a key of their own, or none."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class ServerSettings(StageConfig):
    """A server that speaks OpenAI's chat completions.

    Attributes:
        url: base URL of the server, such as `http://127.0.0.1:8000/v1`.
        model: name of the model at the server.
        revision: free text that tells two models of one name apart; another one asks everything anew.
        key_env: name of the environment variable that holds the API key; a server on this machine needs none.
        system: system message before the request.
        parameters: further fields of the request, such as `seed` or `max_completion_tokens`.
        parallel: requests at a time.
        timeout_s: longest time of a request.
        attempts: most attempts of a request.
        backoff_s: longest random wait before the second attempt; it doubles with each further one.
        max_calls: most calls of a run, repeated attempts included; more are refused before the first is sent.
        max_tokens_total: most tokens of a run, requests and replies together.
    """

    url: Annotated[str, Runtime()]
    model: str = Field(min_length=1)
    revision: str = ""
    key_env: Annotated[str | None, Runtime()] = None
    system: str = ""
    parameters: JsonObject = Field(default={})
    parallel: Annotated[int, Runtime(), Field(ge=1, le=256)] = 8
    timeout_s: Annotated[float, Runtime(), Field(gt=0)] = 60.0
    attempts: Annotated[int, Runtime(), Field(ge=1)] = 5
    backoff_s: Annotated[float, Runtime(), Field(ge=0)] = 0.5
    max_calls: Annotated[int, Runtime(), Field(ge=1)] = 20_000
    max_tokens_total: Annotated[int | None, Runtime(), Field(ge=1)] = None

    @property
    def key(self) -> str:
        """The API key; empty if the server needs none."""
        return os.environ.get(self.key_env, "").strip() if self.key_env is not None else ""

    @property
    def server(self) -> str:
        """Model and host, for messages."""
        return f"{self.model} at {urlsplit(self.url).netloc}"

    def problems(self, where: str, reserved: tuple[str, ...] = RESERVED) -> list[Problem]:
        """Return problems of the address, the key's name and further parameters.

        Args:
            where: key of the recipe that holds these settings, such as `endpoint`.
            reserved: fields that `parameters` may not name.
        """
        problems = list(_address_problems(self.url, where))
        for name in self.parameters:
            if name in reserved:
                own = f"{where}.{name} is the key for it" if name in type(self).model_fields else ""
                problems.append(Problem(f"{where}.parameters names `{name}`", "further fields of the request", own))
        if self.key_env is not None and not _VARIABLE.fullmatch(self.key_env):
            # The value is not shown: it may be the key itself.
            remedy = "put the key into a variable, such as JUDGE_KEY, and its name here"
            problems.append(Problem(f"{where}.key_env is no name of an environment variable", "a name", remedy))
        return problems

    def machine_problems(self, where: str) -> Iterator[Problem]:
        """Yield what this machine lacks: libraries, and the variable with the key; ``where`` is as in `problems`."""
        missing = [module for module in MODULES if not has(module)]
        if missing:
            are = agreeing(len(missing), "is", "are")
            yield Problem(f"{where} is set, and {', '.join(missing)} {are} not installed", "", INSTALL)
        if self.key and not (self.key.isascii() and self.key.isprintable()):
            statement = f"the value of {self.key_env} has characters that no key has"
            yield Problem(statement, "letters, digits and signs of ASCII", f"export {self.key_env} again")
        if self.key_env is not None and not self.key:
            remedy = f"run `export {self.key_env}=…` first, or leave {where}.key_env out if the server needs no key"
            yield Problem(f"{where}.key_env is {self.key_env}, and that variable is not set", "", remedy)


def _address_problems(url: str, where: str) -> Iterator[Problem]:
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, is_address = None, False
    if parts is None or not is_address:
        yield Problem(f"{where}.url is {url!r}", "the base URL of a server, such as http://127.0.0.1:8000/v1")
    elif parts.username or parts.password:
        yield Problem(f"{where}.url holds a user or a password", "an address", "name the key's variable as key_env")
    elif "?" in url or "#" in url:
        yield Problem(f"{where}.url holds a query or a fragment", "the base URL", "leave them out")
    elif parts.path.rstrip("/").endswith("/chat/completions"):
        base = url.rstrip("/").removesuffix("/chat/completions")
        yield Problem(f"{where}.url is {url!r}", "the base URL", f"write {base}")
