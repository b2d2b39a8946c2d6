"""What the words of `evaluation.texts`, `recovery.task`, `task.parts` and `task.test_task` stand for. No torch here."""

import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from policyprune.config.option_files import read_option
from policyprune.config.registry import options
from policyprune.config.schema import Chat, Generated, LanguageModeling, Mixture, Task
from policyprune.errors import UsageError

FILE = re.compile(r"\.(txt|json|jsonl|csv|tsv|parquet)(\.gz)?")
CHAT = "chat:"
KINDS = {"language_modeling": LanguageModeling, "chat": Chat}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def corpus_of(word: str, key: str = "evaluation.texts") -> LanguageModeling:
    """The corpus whose test part is meant: an option of `task`, a whole file, or the test split of a hub id.

    `chat:` in front of a file or a hub id says that it holds conversations. UsageError, naming `key`, for what is none
    of these. Whether a file is there is not looked at.
    """
    choices = _corpora()
    if word in choices:
        return choices[word]
    kind, source = (Chat, word.removeprefix(CHAT)) if word.startswith(CHAT) else (LanguageModeling, word)
    name = Path(source).name
    suffix = "".join(Path(source).suffixes[-2:] if source.endswith(".gz") else Path(source).suffixes[-1:])
    if FILE.fullmatch(suffix):
        return kind(name=name.removesuffix(suffix), files=[source], test_files=[source])
    if HUB_ID.fullmatch(source) and source not in options("task"):
        return kind(name=name, source=source)
    raise UsageError(
        f"{key}: {word!r} is none of {', '.join(choices)}, no text file (.txt, .json, .jsonl, .csv, .tsv, "
        f".parquet, optionally .gz) and no hub id (owner/name), either of them behind {CHAT} if it holds conversations"
    )


def training_corpus(word: str, key: str) -> LanguageModeling:
    """The same to be trained on: of a file a hashed share is its test part."""
    return replace(corpus_of(word, key), test_files=None)


def parts_of(task: Mixture) -> list[LanguageModeling]:
    """The texts of a mixture, to be trained on, with its calibration. UsageError for words that stand for none."""
    return [replace(training_corpus(word, "task.parts"), calibration=task.calibration) for word in task.parts]


def test_of(task: Generated) -> list[LanguageModeling]:
    """The text that is measured, if any. UsageError for a word that stands for none."""
    if task.test_task is None:
        return []
    return [replace(corpus_of(task.test_task, "task.test_task"), calibration=task.calibration)]


def shares(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to the weights, with the sum `total`, by the method of the largest remainder."""
    exact = [Fraction(weight) * total / sum(map(Fraction, weights)) for weight in weights]
    whole = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda part: whole[part] - exact[part])
    for part in by_remainder[: total - sum(whole)]:
        whole[part] += 1
    return whole


def check_mixture(task: Mixture) -> None:
    """Raise UsageError for parts that are none, named twice, or without a share."""
    twice = [word for word in task.parts if task.parts.count(word) > 1]
    if not task.parts or twice:
        wrong = f"{twice[0]!r} stands there twice" if twice else "empty"
        raise UsageError(f"task.parts: {wrong}, name the texts of the mixture, such as [wikipedia,chat:own.jsonl]")
    parts_of(task)
    if len(task.weights) not in (0, len(task.parts)):
        raise UsageError(f"task.weights: {task.weights} are not {len(task.parts)}, one for each of task.parts")


def check_shares(task: Task) -> None:
    """Raise UsageError for a text of a mixture that has none of the calibration sequences."""
    if not isinstance(task, Mixture):
        return
    counts = shares(task.weights or [1] * len(task.parts), task.calibration.count)
    if 0 in counts:
        raise UsageError(
            f"task.weights: {task.parts[counts.index(0)]!r} gets none of the {task.calibration.count} sequences of "
            "task.calibration.count"
        )


def check_generated(task: Generated) -> None:
    """Raise UsageError for a test that is none or is begun with, for nothing to answer, and for too few tokens."""
    if any(task.prompts in (test.files or []) for test in test_of(task)):
        raise UsageError(f"task.prompts: {task.prompts!r} is the text that is measured, name another file")
    if task.chat and task.prompts is None:
        raise UsageError("task.chat: true, but there is nothing to answer; give task.prompts=FILE")
    wanted = task.calibration.count * task.calibration.length
    if task.tokens < wanted:
        raise UsageError(
            f"task.tokens: {task.tokens} are fewer than the {wanted} that task.calibration takes, use more"
        )


def _corpora() -> dict[str, LanguageModeling]:
    """The options of `task` that have a text of their own."""
    read = {name: read_option("task", name) for name in options("task")}
    return {
        name: KINDS[option.kind](**option.values)
        for name, option in read.items()
        if option.kind in KINDS and (option.values.get("source") or option.values.get("files"))
    }
