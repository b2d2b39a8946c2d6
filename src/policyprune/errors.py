"""The error that a user can mend: shown as one line, exit code 2."""


class UsageError(ValueError):
    """A wrong value, key or combination. The message names the key, the value and the valid choices."""
