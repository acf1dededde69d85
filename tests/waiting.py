"""Waiting for what other processes do, and finding those that are left."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import psutil


def living(*sessions: int) -> list[psutil.Process]:
    """Return the living processes of sessions."""
    processes = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return processes


def until(condition: Callable[[], Any], what: str, timeout_s: float = 800) -> Any:
    """Wait for something to come true and return it."""
    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends:
        outcome = condition()
        if outcome:
            return outcome
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen in {timeout_s:g} s")
