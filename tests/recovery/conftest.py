"""A tiny model, a smaller one that was cut from it, and a text to train on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from harness import paragraphs, write_corpus
from policyprune.config.schema import Calibration, LanguageModeling
from policyprune.pruning.prunable import PrunableModel
from policyprune.surgery.shrink import shrink


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory) -> LanguageModeling:
    corpus = write_corpus(tmp_path_factory.mktemp("corpus") / "stories.txt", paragraphs(150))
    calibration = Calibration(count=48, length=16, seed=0)
    return LanguageModeling(name="text", files=[str(corpus)], bos="none", calibration=calibration)


@pytest.fixture(scope="session")
def dense(tiny_llama: Any, tiny_tokenizer: Any) -> Any:
    return tiny_llama(vocab_size=len(tiny_tokenizer))


@pytest.fixture(scope="session")
def smaller(dense: Any) -> Any:
    """Of unequal widths, and sharing weights with the dense one."""
    prunable = PrunableModel.of(dense)
    mask = torch.rand(prunable.units.n, generator=torch.Generator().manual_seed(1)) < 0.6
    return shrink(prunable, mask)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "trainer"
