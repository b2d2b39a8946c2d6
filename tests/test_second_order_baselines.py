"""OSSCAR and ZipLM on a tiny model, from statistics to the smaller model."""

from typing import Any

import pytest
import torch

import policyprune as pp
from harness import paragraphs

TEXTS = paragraphs(40)


@pytest.fixture(scope="module")
def llama(tiny_llama: Any, tiny_tokenizer: Any) -> Any:
    return tiny_llama(vocab_size=len(tiny_tokenizer), num_hidden_layers=3)


def pruned(model: Any, tokenizer: Any, method: str, **choices: Any) -> pp.PruningResult:
    return pp.prune(model, TEXTS, tokenizer, method=method, length=16, **choices)


@pytest.mark.parametrize("method", ["osscar", "ziplm_uniform"])
def test_layers_that_keep_equal_shares(method: str, llama: Any, tiny_tokenizer: Any) -> None:
    result = pruned(llama, tiny_tokenizer, method, keep=0.75)
    report = result.report
    assert {row["kept"] / row["count"] for row in report.keep_rates} == {0.75}
    assert {row["outcome"] for row in report.tuning} == {"reconstructed"}
    assert all(row["error"] < row["binary_error"] for row in report.tuning)
    assert report.forwards == report.backwards == 0
    assert bool(result.model(torch.randint(5, 250, (2, 12))).logits.isfinite().all())
