"""A tiny model that has learned something, so that what is pruned is missed and can be made up for."""

from pathlib import Path
from typing import Any

import pytest
import torch

import policyprune as pp
from harness import paragraphs


@pytest.fixture(scope="session")
def learned(tiny_llama: Any, tiny_tokenizer: Any, gpu: torch.device) -> Any:
    """A llama on the GPU, in bfloat16, that knows the tests' own sentences."""
    model = tiny_llama(vocab_size=len(tiny_tokenizer), attn_implementation="sdpa").to(gpu, torch.bfloat16)
    options = pp.Finetune(steps=120, length=16, learning_rate=3e-3, evaluations=2)
    found = pp.recover(model, paragraphs(150), tiny_tokenizer, recovery=options)
    assert found.report["outcome"] == "recovered"
    return found.model


@pytest.fixture(scope="session")
def learned_checkpoint(learned: Any, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder. Not to be written to."""
    folder = tmp_path_factory.mktemp("learned") / "tiny-llama"
    learned.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder
