"""Whole runs with the channels of the residual stream as units, in this process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from harness import SMALL_EVALUATION, paragraphs, small_run, validated, write_corpus
from policyprune.commands.run import run
from policyprune.errors import UsageError
from policyprune.runs.record import Record
from policyprune.surgery.plan_file import read_plan

QUICK = ["evaluation.fresh_process=false", *SMALL_EVALUATION]
STEPS = ["optimizer.steps=3", "optimizer.batch_size=4"]
OPTIMIZERS = {
    "one_shot": [],
    "policy_gradient": STEPS,
    "gumbel": STEPS,
    "evolution": ["optimizer.steps=2", "optimizer.population=3", "optimizer.parents=2", "optimizer.batch_size=4"],
    "ppo": ["optimizer.iterations=1", "optimizer.episodes=2", "optimizer.examples=8"],
}
HIDDEN = 64  # of the tiny model, with 8 heads


@pytest.fixture
def ran(tiny_checkpoint: Path, tmp_path: Path) -> Any:
    corpus = write_corpus(tmp_path / "stories.txt", paragraphs(150))

    def call(*overrides: str) -> tuple[Record, Path]:
        overrides = ("granularity=hidden", *overrides, *QUICK)
        record = run(validated(*small_run(tiny_checkpoint, corpus, *overrides)), tmp_path / "run")
        assert record.status == "finished"
        return record, tmp_path / "run"

    return call


def value(record: Record, subject: str, metric: str) -> float:
    return float(next(row.value for row in record.results if (row.subject, row.metric) == (subject, metric)) or 0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_keeps_the_rate(ran: Any, optimizer: str) -> None:
    record, folder = ran(f"optimizer={optimizer}", *OPTIMIZERS[optimizer], "budget.keep=0.75")
    assert [(row["kind"], row["kept"], row["count"]) for row in record.keep_rates] == [("hidden", 48, HIDDEN)]
    model = AutoModelForCausalLM.from_pretrained(folder / "checkpoint")
    assert type(model) is LlamaForCausalLM  # 48 is a multiple of the heads
    assert model.config.hidden_size == 48
    assert model.lm_head.weight.shape[1] == 48


@pytest.mark.parametrize("budget", ["params", "flops"])
@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_budgets_are_met_to_a_channel(ran: Any, budget: str, importance: str) -> None:
    record, folder = ran(
        "optimizer=one_shot", f"importance={importance}", f"budget={budget}", "budget.sequence_length=16",
        "budget.keep=0.6",
    )  # fmt: skip
    metric = {"params": "block_parameters", "flops": "block_macs"}[budget]
    dense, pruned = value(record, "dense", metric), value(record, "pruned", metric)
    assert pruned <= 0.6 * dense < pruned + dense / HIDDEN
    config = AutoModelForCausalLM.from_pretrained(folder / "checkpoint", trust_remote_code=True).config
    assert config.hidden_size == HIDDEN
    assert config.kept_hidden_size == record.keep_rates[0]["kept"]


def test_the_plan_makes_the_checkpoint_again(ran: Any, tiny_checkpoint: Path) -> None:
    _, folder = ran("optimizer=one_shot", "importance=random", "budget.keep=0.7")
    ids = torch.arange(12)[None]
    checkpoint = AutoModelForCausalLM.from_pretrained(folder / "checkpoint", trust_remote_code=True).eval()
    dense = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=checkpoint.dtype).eval()
    again = read_plan(folder / "plan.json").apply(dense)
    assert torch.equal(checkpoint(ids).logits, again(ids).logits)


def test_the_checkpoint_is_pruned_again_by_heads_and_channels(ran: Any) -> None:
    """Unequal layers and fewer hidden channels in one modelling file."""
    _, folder = ran("optimizer=one_shot", "importance=magnitude", "budget.keep=0.7")
    first = folder.rename(folder.with_name("first")) / "checkpoint"
    with pytest.raises(UsageError, match=r"model\.trust_remote_code: false"):
        ran(f"model.source={first}", "granularity=head_channel", "importance=magnitude", "optimizer=one_shot")
    trusted = [f"model.source={first}", "model.trust_remote_code=true"]
    _, folder = ran(
        *trusted, "granularity=head_channel", "importance=wanda_sp", "optimizer=one_shot", "budget.keep=0.6",
        "evaluation.fresh_process=true",
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder / "checkpoint", trust_remote_code=True).eval()
    widths = {layer.mlp.down_proj.weight.shape for layer in model.model.layers}
    assert len(widths) > 1
    assert {shape[0] for shape in widths} == {45}
    assert model.model.embed_tokens.weight.shape[1] == 45
