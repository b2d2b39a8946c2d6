"""A task's config without Hydra, and a tokenizer that puts BOS first."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from policyprune.config.schema import Calibration, LanguageModeling

MakeTask = Callable[..., LanguageModeling]


def make_task(count: int = 8, length: int = 16, seed: int = 0, **changes: Any) -> LanguageModeling:
    """The defaults of conf/base/language_modeling.yaml, for files, with a small calibration."""
    values: dict[str, Any] = {
        "name": "text",
        "source": None,
        "subset": None,
        "data_files": {},
        "calibration_split": "train",
        "test_split": "test",
        "test_source": None,
        "test_subset": None,
        "files": None,
        "test_files": None,
        "test_fraction": 0.25,
        "text_column": "text",
        "key_column": None,
        "separator": "\n\n",
        "bos": "none",
        "test_documents": None,
        "calibration": Calibration(count, length, seed),
    }
    for key in ("files", "test_files"):
        if changes.get(key) is not None:
            changes[key] = [str(path) for path in changes[key]]
    return LanguageModeling(**(values | changes))


@pytest.fixture(scope="session")
def text_task() -> MakeTask:
    """The factory `make_task`."""
    return make_task


@pytest.fixture(scope="session")
def bos_tokenizer(tiny_tokenizer: Any) -> Any:
    """The tiny tokenizer with a BOS token before every text, as LLaMA's has it."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer
