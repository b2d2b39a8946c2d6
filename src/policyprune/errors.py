"""Errors that end a run without a traceback, and any error as one line."""

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


def describe(error: BaseException) -> str:
    """An error in one line: ours by their message, those of files by their path, others by their class and message."""
    if isinstance(error, OSError) and error.strerror:
        words = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    elif isinstance(error, UsageError | RunError):
        words = str(error)
    else:
        words = f"{type(error).__name__}: {error}"
    return on_one_line(words)


def on_one_line(text: str) -> str:
    """The text with its line breaks as spaces, and with other characters that a terminal would obey as escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in " ".join(text.split())
    )
