"""OSSCAR, ZipLM and Týr-the-Pruner on a tiny model, from statistics to the smaller model."""

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


@pytest.mark.parametrize("budget", ["rate", "flops"])
def test_ziplm_searches_widths_and_keeps_the_units_and_weights_that_it_searched_with(
    budget: str, llama: Any, tiny_tokenizer: Any
) -> None:
    options = {"optimizer": pp.SPDY(steps=20, sequences=8), "keep": 0.75, "budget": budget}
    result = pruned(llama, tiny_tokenizer, "ziplm", **options)
    report = result.report
    assert report.config.importance.name == "obs"
    assert 0 < report.forwards <= 21
    assert len(report.steps) == 21
    if budget == "flops":
        assert 0.6 * report.dense["block_macs"] < report.smaller["block_macs"] <= 0.75 * report.dense["block_macs"]
    searched = pruned(llama, tiny_tokenizer, "ziplm", tuning=pp.NoTuning(), **options)
    assert torch.equal(result.mask, searched.mask)


def test_tyr_exchanges_widths_in_rounds_and_prunes_locally_at_the_widths_found(llama: Any, tiny_tokenizer: Any) -> None:
    optimizer = pp.LevelEvolution(steps=2, rounds=2, levels=4, offspring=4, survivors=[2], sequences=[4, 8])
    result = pruned(llama, tiny_tokenizer, "tyr", optimizer=optimizer, keep=0.75)
    report = result.report
    assert len(report.steps) == 4
    assert report.backwards == 0
    for kind, units in (("attention", 12), ("ffn", 144)):
        assert sum(row["kept"] for row in report.keep_rates if row["kind"] == kind) == 0.75 * units
    assert {row["outcome"] for row in report.tuning} == {"reconstructed"}
    again = pruned(llama, tiny_tokenizer, "tyr", optimizer=optimizer, keep=0.75)
    assert torch.equal(again.mask, result.mask)
