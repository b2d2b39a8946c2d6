"""What the words of `evaluation.texts`, and of `recovery.task`, stand for. No torch here."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from policyprune.config.option_files import read_option
from policyprune.config.registry import options
from policyprune.config.schema import LanguageModeling
from policyprune.errors import UsageError

FILE = re.compile(r"\.(txt|json|jsonl|csv|tsv|parquet)(\.gz)?")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def corpus_of(word: str, key: str = "evaluation.texts") -> LanguageModeling:
    """The corpus whose test part is meant: an option of `task`, a whole file, or the test split of a hub id.

    UsageError, naming `key`, for what is none of these. Whether a file is there is not looked at.
    """
    choices = _corpora()
    if word in choices:
        return LanguageModeling(**choices[word])
    name = Path(word).name
    suffix = "".join(Path(word).suffixes[-2:] if word.endswith(".gz") else Path(word).suffixes[-1:])
    if FILE.fullmatch(suffix):
        return LanguageModeling(name=name.removesuffix(suffix), files=[word], test_files=[word])
    if HUB_ID.fullmatch(word) and word not in options("task"):
        return LanguageModeling(name=name, source=word)
    raise UsageError(
        f"{key}: {word!r} is none of {', '.join(choices)}, no text file (.txt, .json, .jsonl, .csv, .tsv, "
        ".parquet, optionally .gz) and no hub id (owner/name)"
    )


def training_corpus(word: str, key: str) -> LanguageModeling:
    """The same to be trained on: of a file a hashed share is its test part."""
    return replace(corpus_of(word, key), test_files=None)


def _corpora() -> dict[str, dict[str, Any]]:
    """The options of `task` that have a text of their own, with their values."""
    read = {name: read_option("task", name) for name in options("task")}
    return {
        name: option.values
        for name, option in read.items()
        if option.kind == "language_modeling" and (option.values.get("source") or option.values.get("files"))
    }
