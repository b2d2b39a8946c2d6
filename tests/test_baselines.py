"""Baselines through the console command: one run for each that changes what is saved or how it is searched."""

from pathlib import Path

import pytest
import torch

from forking import forked
from harness import SMALL_EVALUATION, paragraphs, small_run, write_corpus
from policyprune.pruning.mask_file import load_compensation, load_mask
from policyprune.runs.record import Record, read_record


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "stories.txt", paragraphs(150))


def ran(tmp_path: Path, checkpoint: Path, corpus: Path, *overrides: str) -> Record:
    """A finished run in `tmp_path`/run."""
    arguments = small_run(checkpoint, corpus, *SMALL_EVALUATION, "tracker=none", *overrides, "hydra.run.dir=run")
    done = forked(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "run")
    assert record is not None
    assert record.status == "finished"
    return record


def value(record: Record, subject: str, metric: str = "perplexity") -> float:
    (row,) = (row for row in record.results if (row.subject, row.metric) == (subject, metric))
    assert row.value is not None
    return row.value


def test_flap_with_bias_compensation(tmp_path: Path, tiny_checkpoint: Path, corpus: Path) -> None:
    flap = ["importance=flap", "optimizer=one_shot", "tuning=bias_compensation", "tuning.sequences=32"]
    evaluation = ["evaluation.one_shot=[]", "evaluation.latency.repeats=0", "budget.keep=0.6"]
    record = ran(tmp_path, tiny_checkpoint, corpus, *flap, *evaluation)
    assert value(record, "reloaded") == pytest.approx(value(record, "tuned"), rel=1e-4)
    assert value(record, "tuned") != pytest.approx(value(record, "pruned"), rel=1e-4)
    assert {row["outcome"] for row in record.tuning} == {"compensated"}
    assert record.calibration == {
        "importance": {"sequences": 16, "tokens": 16 * 16, "backpropagation": False},
        "search": {"sequences": 0, "tokens": 0, "backpropagation": False},
        "tuning": {"sequences": 32, "tokens": 32 * 16, "backpropagation": False},
    }
    space, mask = load_mask(tmp_path / "run" / "mask.safetensors")
    compensation = load_compensation(tmp_path / "run" / "mask.safetensors", space)
    assert compensation is not None
    assert set(compensation.biases) == {key for key, view in space.views(mask).items() if not view.all()}
    assert all(bool(torch.isfinite(bias).all()) for bias in compensation.biases.values())


def test_reconstruction(tmp_path: Path, tiny_checkpoint: Path, corpus: Path) -> None:
    tuning = ["tuning=reconstruct", "tuning.sequences=32", "optimizer=one_shot", "budget.keep=0.6"]
    record = ran(tmp_path, tiny_checkpoint, corpus, *tuning, "evaluation.one_shot=[]", "evaluation.latency.repeats=0")
    assert value(record, "reloaded") == pytest.approx(value(record, "tuned"), rel=1e-4)
    assert "reconstructed" in {row["outcome"] for row in record.tuning}
    space, _ = load_mask(tmp_path / "run" / "mask.safetensors")
    compensation = load_compensation(tmp_path / "run" / "mask.safetensors", space)
    assert compensation is not None
    assert compensation.weights


SEARCHES = {
    "evolution": ["optimizer.steps=2", "optimizer.population=3", "optimizer.parents=1", "optimizer.final_batches=2"],
    "gumbel": ["optimizer.steps=3", "optimizer.batch_size=4"],
    "greedy": ["granularity=head", "optimizer.sequences=8"],
}
LOOKED_AT = {"evolution": 4 * 8, "gumbel": 3 * 4, "greedy": 8}
FORWARDS = {"evolution": 2 * 3 + 1 * 2, "gumbel": 3 * 2, "greedy": 12 + 11 + 10}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search(name: str, tmp_path: Path, tiny_checkpoint: Path, corpus: Path) -> None:
    only = ["evaluation.fresh_process=false", "evaluation.one_shot=[]", "evaluation.latency.repeats=0", "export=none"]
    record = ran(tmp_path, tiny_checkpoint, corpus, f"optimizer={name}", *SEARCHES[name], *only, "budget.keep=0.75")
    assert record.search["forwards"] == FORWARDS[name]
    assert record.calibration["search"]["backpropagation"] == (name == "gumbel")
    assert record.calibration["search"]["sequences"] == LOOKED_AT[name]
    space, mask = load_mask(tmp_path / "run" / "mask.safetensors")
    kinds = {
        kind: sum(int(v.sum()) for (_, own), v in space.views(mask).items() if own == kind)
        for _, kind in space.views(mask)
    }
    assert kinds == ({"attention": 9} if name == "greedy" else {"attention": 9, "ffn": 108})
    assert value(record, "pruned") != pytest.approx(value(record, "dense"), rel=1e-6)
    assert (tmp_path / "run" / "curve.jsonl").read_text().count("\n") == {"evolution": 2, "gumbel": 3, "greedy": 3}[
        name
    ]
