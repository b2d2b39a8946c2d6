"""Ends of a run that need no traceback."""

import signal


class UsageError(ValueError):
    """A wrong value, key or combination. The message names the key, the value and the valid choices; exit code 2."""


class RunError(RuntimeError):
    """What ended a run and is no mistake in a value. Shown as one line, exit code 1."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to end; exit code 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 128 + number
