"""Whole runs with blocks and layers as units, aligned and equal widths, and a latency budget, in this process."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from harness import SMALL_EVALUATION, paragraphs, small_run, validated, write_corpus
from policyprune.commands.run import run
from policyprune.evaluation import latency_table
from policyprune.evaluation.latency import kept_latency
from policyprune.pruning.budget.block_latency import BlockLatency, Timing
from policyprune.runs.record import Record
from policyprune.tasks import build
from reports import report_on, table_of

QUICK = ["tuning=none", "evaluation.fresh_process=false", "evaluation.one_shot=[global,per_layer]", *SMALL_EVALUATION]
PPO = ["optimizer.iterations=2", "optimizer.episodes=2", "optimizer.examples=8", "importance.sequences=16"]
STEPS = ["optimizer.steps=4", "optimizer.batch_size=4"]
LATENCY = BlockLatency(0.02, {"attention": 0.1, "ffn": 0.1}, {"attention": 0.1, "ffn": 0.38 / 48})


def invented(folder: Path, key: Any, points: list[tuple[int, int]], measure: Any) -> list[Timing]:
    return [Timing(*point, LATENCY.of(*point)) for point in points]


@pytest.fixture
def ran(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    corpus = write_corpus(tmp_path / "stories.txt", paragraphs(150))
    monkeypatch.setattr(latency_table, "table", invented)

    def call(*overrides: str) -> tuple[Record, Path]:
        record = run(validated(*small_run(tiny_checkpoint, corpus, *overrides, *QUICK)), tmp_path / "run")
        assert record.status == "finished"
        return record, tmp_path / "run" / "checkpoint"

    return call


def value(record: Record, subject: str, metric: str) -> float:
    return float(next(row.value for row in record.results if (row.subject, row.metric) == (subject, metric)) or 0)


def whole(record: Record) -> dict[str, int]:
    """Number of layers that keep all units of a kind; the other ones must keep none."""
    assert all(row["kept"] in (0, row["count"]) for row in record.keep_rates)
    kinds = ("attention", "ffn")
    return {kind: sum(row["kept"] > 0 for row in record.keep_rates if row["kind"] == kind) for kind in kinds}


def test_dropped_layers_leave_a_stock_checkpoint(ran: Any) -> None:
    record, checkpoint = ran("granularity=layer", "budget.keep=0.67", "optimizer=one_shot")
    assert whole(record) == {"attention": 2, "ffn": 2}
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert type(model) is LlamaForCausalLM
    assert model.config.num_hidden_layers == 2
    assert value(record, "pruned", "block_macs") == pytest.approx(2 / 3 * value(record, "dense", "block_macs"))


@torch.no_grad()
def test_the_layer_with_the_least_influence_goes(ran: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    shortgpt = ("granularity=layer", "importance=block_influence", "optimizer=one_shot")
    record, checkpoint = ran(*shortgpt, "budget.keep=0.67")
    assert whole(record) == {"attention": 2, "ffn": 2}
    assert AutoModelForCausalLM.from_pretrained(checkpoint).config.num_hidden_layers == 2
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    task = build(validated(*small_run(tiny_checkpoint, tmp_path / "stories.txt")).task, tokenizer, model)
    states: list[Any] = []
    for module in (*model.model.layers, model.model.norm):
        module.register_forward_pre_hook(lambda module, args: states.append(args[0]))
    model(**task.inputs(torch.arange(16)))
    alike = [float(torch.cosine_similarity(*pair, dim=-1).mean()) for pair in pairwise(states)]
    assert {row["layer"] for row in record.keep_rates if not row["kept"]} == {alike.index(max(alike))}


def test_blocks_are_counted_by_rate(ran: Any) -> None:
    record, _ = ran("granularity=sublayer", "budget.keep=0.67")
    assert whole(record) == {"attention": 2, "ffn": 2}


@pytest.mark.parametrize("optimizer", [["optimizer=ppo", *PPO], ["optimizer=policy_gradient", *STEPS]])
def test_everything_in_one_space_under_a_latency_budget(ran: Any, optimizer: list[str]) -> None:
    record, _ = ran(*optimizer, "granularity=all", "budget=latency", "budget.keep=0.6", "budget.repeats=1")
    promised = value(record, "pruned", "promised_block_latency_share")
    assert 0.6 - 8 * 0.38 / 48 < promised <= 0.6  # channels come in eights
    assert value(record, "pruned", "block_latency_share") > 0
    assert value(record, "dense", "block_latency") > 0


def test_the_recovered_model_is_the_one_that_is_timed(ran: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[tuple[str, dict[str, torch.Tensor]]] = []

    def noted(options: Any, dense: Any, smaller: Any, *more: Any) -> Any:
        timed.append((smaller[0], smaller[1].state_dict()))
        return kept_latency(options, dense, smaller, *more)

    monkeypatch.setattr("policyprune.commands.run.kept_latency", noted)
    trained = ("recovery=finetune", "recovery.steps=8", "recovery.length=16", "recovery.learning_rate=3e-3")
    latency = ("budget=latency", "budget.keep=0.6", "budget.repeats=1")
    record, checkpoint = ran("optimizer=one_shot", *trained, "recovery.held_out=16", *latency)
    assert record.recovery["outcome"] == "recovered"
    ((subject, weights),) = timed
    saved = load_file(checkpoint / "model.safetensors")
    assert subject == "recovered"
    assert all(weights[name].equal(tensor) for name, tensor in saved.items())
    assert {row.subject for row in record.results if "latency" in row.metric} == {"dense", "recovered"}
    table = table_of(report_on(checkpoint.parent), "size")
    timings = [number for number, title in enumerate(table.columns) if title.startswith("latency")]
    assert len(timings) == 4
    shown = {row.names[-1]: {bool(row.cells[number].value) for number in timings} for row in table.rows[1:]}
    assert shown == {"": {False}, "finetune": {True}}


def test_kwon_under_a_latency_budget(ran: Any) -> None:
    latency = ("budget=latency", "budget.keep=0.5", "budget.repeats=1")
    record, _ = ran("optimizer=kwon", "importance.sequences=16", *latency)
    assert 0.45 < value(record, "pruned", "promised_block_latency_share") <= 0.5  # a closed block costs 0.1 to open


def test_equal_aligned_widths_leave_a_stock_checkpoint(ran: Any) -> None:
    same = ("granularity=channel", "granularity.align=16", "budget=flops", "budget.scope=uniform", "budget.keep=0.96")
    record, checkpoint = ran(*same, "optimizer=one_shot")
    assert {row["kept"] for row in record.keep_rates} == {32}
    assert type(AutoModelForCausalLM.from_pretrained(checkpoint)) is LlamaForCausalLM
