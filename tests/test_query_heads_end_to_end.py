"""Runs over query heads: each importance, search and tuning that works on heads works on these."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import policyprune as pp
from harness import SMALL_EVALUATION, paragraphs, small_run, validated, write_corpus
from policyprune.commands.run import run
from policyprune.errors import UsageError
from policyprune.pruning.mask_file import load_mask
from policyprune.pruning.prunable import PrunableModel

TEXTS = paragraphs(40)
UNITS = ["query_head", "ffn"]


@pytest.fixture(scope="module")
def llama(tiny_llama: Any, tiny_tokenizer: Any) -> Any:
    return tiny_llama(
        vocab_size=len(tiny_tokenizer), num_attention_heads=6, num_key_value_heads=2, head_dim=8, hidden_size=48
    )


@pytest.mark.parametrize(
    ("importance", "optimizer", "tuning", "budget"),
    [
        ("obs", pp.Levels(sequences=4), "reconstruct", "params"),
        ("obs", pp.Levels(sequences=4), "none", "flops"),
        ("taylor", pp.PolicyGradient(steps=3, batch_size=4), "cg2", "params"),
        ("wanda_sp", pp.OneShot(), "reconstruct", "rate"),
        ("magnitude", pp.Evolution(steps=1, batch_size=4, population=3, parents=2), "none", "flops"),
    ],
)
def test_what_comes_out_is_what_was_masked(
    llama: Any, tiny_tokenizer: Any, importance: str, optimizer: Any, tuning: str, budget: str
) -> None:
    choices = {"importance": importance, "optimizer": optimizer, "tuning": tuning, "budget": budget}
    prunable = pp.PrunableModel(llama, units=UNITS)
    found = pp.prune(prunable, TEXTS, tiny_tokenizer, keep=0.7, length=16, **choices)
    again = pp.prune(prunable, TEXTS, tiny_tokenizer, keep=0.7, length=16, **choices)
    assert torch.equal(found.mask, again.mask)
    for key, view in prunable.units.views(found.mask).items():
        if key[1] == "attention":
            assert len(set(view.view(2, 3).sum(1).tolist())) == 1
    if budget != "rate":
        name = "block_parameters" if budget == "params" else "block_macs"
        assert found.report.smaller[name] <= 0.7 * found.report.dense[name]
    ids = torch.randint(5, 250, (2, 12))
    with torch.no_grad():
        if tuning == "none":
            with prunable.masked(found.mask) as masked:
                expected = masked(ids).logits
            torch.testing.assert_close(found.model(ids).logits, expected, rtol=1e-4, atol=1e-4)
        else:
            torch.testing.assert_close(found.plan.apply(llama)(ids).logits, found.model(ids).logits)


@pytest.mark.parametrize("budget", ["params", "latency"])
def test_a_run_from_the_command_line(
    llama: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: str
) -> None:
    monkeypatch.setenv("POLICYPRUNE_CACHE", str(tmp_path / "cache"))
    llama.save_pretrained(tmp_path / "dense")
    tiny_tokenizer.save_pretrained(tmp_path / "dense")
    corpus = write_corpus(tmp_path / "stories.txt", paragraphs(150))
    words = ["granularity=query_head_channel", "importance=obs", "optimizer=levels", "tuning=none", *SMALL_EVALUATION]
    words += [f"budget={budget}", "budget.keep=0.7", "evaluation.fresh_process=false"]
    words += ["budget.repeats=1", "budget.batch_size=2"] if budget == "latency" else []
    record = run(validated(*small_run(tmp_path / "dense", corpus, *words)), tmp_path / "run")
    assert record.status == "finished"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint", trust_remote_code=True)
    units, mask = load_mask(tmp_path / "run" / "mask.safetensors")
    assert {group.count for group in units.groups if group.kind == "attention"} == {6}
    prunable, ids = PrunableModel.over(llama, units), torch.randint(5, 250, (2, 12))
    with torch.no_grad(), prunable.masked(mask) as masked:
        torch.testing.assert_close(model(ids).logits, masked(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["optimizer=one_shot", "granularity.units=[attention,query_head]"],
            "granularity.units: attention takes whole KV groups",
        ),
        (["granularity=query_head", "tuning=local_pruning"], "tuning: local_pruning exchanges units one by one"),
        (["granularity=query_head", "optimizer=from_run", "optimizer.folder=."], "from_run takes no masks of query"),
    ],
)
def test_what_does_not_go_with_query_heads_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, words: list[str], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        validated(*small_run(tiny_checkpoint, tmp_path / "none.txt", *words))
