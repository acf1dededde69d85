"""Stopping a stage at a step that a test chooses."""


class StopAfter:
    """Says stop once it was asked so many times; a stage asks at the end of every step or iteration."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0
