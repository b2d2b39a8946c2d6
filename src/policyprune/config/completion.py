"""Tab completion behind a verb: Hydra completes group=option, and knows no verbs and no sweeps."""

import os
from collections.abc import Iterable

from policyprune.config.options import sweeps


def complete(arguments: list[str], verbs: list[str]) -> bool:
    """Print the words that the command line may go on with, where Hydra cannot; True when that was all.

    Otherwise takes the verb (and the sweep's name) out of the line that Hydra is going to complete.
    """
    line = os.environ.get("COMP_LINE")
    if line is None or not any(argument.startswith("query=") for argument in arguments):
        return False
    program, *words = line.split(" ")
    begun = words.pop() if words else ""
    if not words and "=" not in begun:
        _print(verb for verb in verbs if verb.startswith(begun))
        return False  # Hydra adds the groups
    if words == ["sweep"]:
        _print(name for name in sweeps() if name.startswith(begun))
        return True
    if words and words[0] in verbs:
        taken = 2 if words[0] == "sweep" else 1
        os.environ["COMP_LINE"] = " ".join([program, *words[taken:], begun])
    return False


def _print(words: Iterable[str]) -> None:
    for word in words:
        print(word)
