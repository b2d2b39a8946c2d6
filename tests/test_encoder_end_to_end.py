"""Encoders through the console command: pruned, tuned, saved, and measured again where policyprune is not there."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders import articles, reviews, save_encoder, write_lines
from forking import forked
from harness import foreign_lines
from policyprune.models.adapter import adapt
from policyprune.pruning.mask_file import load_mask
from policyprune.runs.record import Record, ResultRow, read_record

LENGTH = 32
SMALL = ["evaluation.latency.repeats=0", "evaluation.one_shot=[global]", f"budget.sequence_length={LENGTH}"]
SMALL_PPO = ["optimizer.iterations=2", "optimizer.episodes=3", "optimizer.chunk=8", "optimizer.examples=32"]


@dataclass(frozen=True)
class Ran:
    """A finished run and what it was asked for."""

    folder: Path
    stdout: str
    tuning: str
    keep: float
    metrics: tuple[str, ...]

    @property
    def record(self) -> Record:
        record = read_record(self.folder)
        assert record is not None
        return record

    @property
    def strength(self) -> float:
        """Share of the tuning that the run kept."""
        (share,) = {row["strength"] for row in self.record.tuning}
        return float(share)

    def rows(self, subject: str) -> dict[str, ResultRow]:
        return {row.metric: row for row in self.record.results if row.subject == subject}


def run(cwd: Path, *arguments: str) -> str:
    shared = [*SMALL, "model.name=tiny", "model.dtype=float32", "hydra.run.dir=run"]
    done = forked(*arguments, *shared, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert foreign_lines(done.stderr) == []
    return done.stdout


def classified(cwd: Path, tokenizer: Any, *arguments: str) -> str:
    files = {name: write_lines(cwd / f"{name}.jsonl", reviews(60, seed)) for seed, name in enumerate(("train", "dev"))}
    return run(
        cwd,
        f"model.source={save_encoder(cwd / 'tiny-bert', tokenizer)}",
        "task=glue/sst2",
        *(f"++task.data_files.{split}={files[name]}" for split, name in (("train", "train"), ("validation", "dev"))),
        "task.calibration.count=48",
        *arguments,
    )


def by_kwon(cwd: Path, tokenizer: Any) -> Ran:
    chosen = ["budget=flops", "budget.keep=0.6", "optimizer=kwon", "tuning=cg2"]
    printed = classified(cwd, tokenizer, "task.source=null", *chosen)
    return Ran(cwd / "run", printed, "cg2", 0.6, ("accuracy", "cross_entropy"))


def by_ppo(cwd: Path, tokenizer: Any) -> Ran:
    chosen = ["budget=params", "budget.keep=0.7", "optimizer=ppo", *SMALL_PPO, "tuning=lsmr"]
    printed = classified(cwd, tokenizer, *chosen)
    return Ran(cwd / "run", printed, "lsmr", 0.7, ("accuracy", "cross_entropy"))


def answering(cwd: Path, tokenizer: Any) -> Ran:
    for seed, name in enumerate(("train", "validation")):
        (cwd / f"{name}.json").write_text(json.dumps(articles(16, seed)), encoding="utf-8")
    printed = run(
        cwd,
        f"model.source={save_encoder(cwd / 'tiny-bert', tokenizer, 'QuestionAnswering')}",
        "task=squad_v1",
        *(f"++task.data_files.{split}={cwd / split}.json" for split in ("train", "validation")),
        "task.max_length=48",
        "task.stride=12",
        "task.calibration.count=null",
        *["budget=flops", "budget.keep=0.8", "optimizer=ppo", *SMALL_PPO, "optimizer.sliced=false", "tuning=cg2"],
    )
    return Ran(cwd / "run", printed, "cg2", 0.8, ("exact_match", "f1"))


MAKERS = {"kwon": by_kwon, "ppo": by_ppo, "answers": answering}


@pytest.fixture(scope="module", params=MAKERS)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Ran:
    """Three runs; each test looks at all of them."""
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param), tiny_tokenizer)


def test_the_record_tells_the_whole_run(ran: Ran) -> None:
    record = ran.record
    assert (record.status, record.error) == ("finished", None)
    stages = ["load", "data", "rehearsal", "importance", "search", "tuning", "export", "evaluation"]
    assert [stage["name"] for stage in record.stages] == stages
    assert record.config["tuning"]["name"] == ran.tuning
    assert record.protocol["calibration"]["source"].endswith(("train.jsonl", "train.json"))
    assert {row.subject for row in record.results} == {"dense", "one_shot", "pruned", "tuned", "reloaded"}


def test_the_metrics_of_every_subject(ran: Ran) -> None:
    for subject in ("dense", "one_shot", "pruned", "tuned", "reloaded"):
        rows = ran.rows(subject)
        assert set(ran.metrics) <= set(rows), subject
        assert rows[ran.metrics[0]].protocol["split"] == "validation"
    if "accuracy" in ran.metrics:
        assert "agreement" not in ran.rows("dense")
        assert all(0 <= float(ran.rows(subject)["agreement"].value or 0) <= 1 for subject in ("pruned", "tuned"))


def test_the_reloaded_checkpoint_is_the_tuned_model(ran: Ran) -> None:
    tuned, reloaded = ran.rows("tuned"), ran.rows("reloaded")
    for metric in ran.metrics:
        assert reloaded[metric].value == pytest.approx(tuned[metric].value, rel=1e-4)
    if "cross_entropy" in ran.metrics:
        same = tuned["cross_entropy"].value == ran.rows("pruned")["cross_entropy"].value
        assert same == (ran.strength == 0)
        assert tuned["cross_entropy"].value != ran.rows("dense")["cross_entropy"].value


def test_the_budget_is_met_and_used(ran: Ran) -> None:
    metric = "block_parameters" if ran.record.config["budget"]["name"] == "params" else "block_macs"
    share = float(ran.rows("tuned")[metric].value or 0) / float(ran.rows("dense")[metric].value or 0)
    assert ran.keep - 0.05 < share <= ran.keep
    assert ran.rows("tuned")["parameters"].value < ran.rows("dense")["parameters"].value  # type: ignore[operator]


def test_tuning_is_reported_and_never_makes_a_block_worse(ran: Ran) -> None:
    report = ran.record.tuning
    kept = {(row["layer"], row["kind"]) for row in ran.record.keep_rates if row["kept"]}
    assert {(row["layer"], row["kind"]) for row in report} == kept
    assert all(row["error"] <= row["binary_error"] for row in report)
    assert any(row["outcome"] == "tuned" for row in report)


def test_the_checkpoint_has_the_widths_of_the_mask_and_loads(ran: Ran) -> None:
    import transformers

    head = "QuestionAnswering" if "f1" in ran.metrics else "SequenceClassification"
    folder = ran.folder / "checkpoint"
    model = getattr(transformers, f"AutoModelFor{head}").from_pretrained(folder, trust_remote_code=True)
    space, mask = load_mask(ran.folder / "mask.safetensors")
    counts = {key: int(view.sum()) for key, view in space.views(mask).items()}
    assert {(block.layer, block.kind): block.count for block in adapt(model).blocks} == counts
    assert sum(parameter.numel() for parameter in model.parameters()) == ran.rows("tuned")["parameters"].value
    assert f"AutoModelFor{head}" in ran.stdout


def test_the_mask_file_has_the_scales(ran: Ran) -> None:
    from safetensors.torch import load_file

    tensors = load_file(ran.folder / "mask.safetensors")
    names = [name for name in tensors if name.endswith(".scale")]
    assert len(names) == 6
    for name in names:
        scale, mask = tensors[name], tensors[name.removesuffix(".scale")]
        assert not scale[~mask].any()
        assert scale.isfinite().all()
    assert any((tensors[name] != tensors[name].round()).any() for name in names) == (ran.strength > 0)


def test_the_search_is_recorded(ran: Ran) -> None:
    record = ran.record
    if record.config["optimizer"]["name"] == "kwon":
        assert record.search["forwards"] == 0
        return
    steps = [json.loads(line) for line in (ran.folder / "curve.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    assert all({"loss", "return", "entropy", "kl", "clip_fraction", "best_loss"} <= set(step) for step in steps)
    assert record.search["forwards"] == steps[-1]["forwards"], "judging tuned masks is not counted"


def test_the_table_is_printed(ran: Ran) -> None:
    for name in ran.metrics:
        assert f"{name.replace('_', ' ')}, validation" in ran.stdout
    assert "tuned" in ran.stdout
    assert f"{float(ran.rows('tuned')[ran.metrics[-1]].value or 0):.4f}" in ran.stdout
    assert torch.equal(load_mask(ran.folder / "mask.safetensors")[1].sum(), torch.tensor(ran.record.search["kept"]))
