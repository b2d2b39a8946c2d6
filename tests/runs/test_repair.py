"""A finished run that has lost files, and one that was refused: what the same command, or the mended one, does then."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness import SMALL_SEARCH, paragraphs, small_run, validated, write_corpus
from policyprune.commands import run as pipeline
from policyprune.commands.checks import check_owner
from policyprune.config.schema import Config
from policyprune.errors import UsageError
from policyprune.pruning.optimizers.no_search import FromRun
from policyprune.runs.folder import finished_before
from policyprune.runs.record import Record, read_record


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Config:
    corpus = write_corpus(tmp_path_factory.mktemp("corpus") / "stories.txt", paragraphs(150))
    given = ["optimizer=straight_through", *SMALL_SEARCH, "tuning=cg2", "tuning.sequences=8", "evaluation=none"]
    return validated(*small_run(tiny_checkpoint, corpus, *given))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, config: Config) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    pipeline.run(config, folder)
    return folder


LOSSES: dict[str, Callable[[Path], object]] = {
    "checkpoint": lambda run: shutil.rmtree(run / "checkpoint"),
    "checkpoint/model.safetensors": lambda run: (run / "checkpoint" / "model.safetensors").write_bytes(b"cut"),
    "plan.json": lambda run: (run / "plan.json").unlink(),
}


@pytest.mark.parametrize("lost", LOSSES)
def test_exports_are_made_again_from_the_mask(
    config: Config, finished: Path, tmp_path: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    LOSSES[lost](run)
    monkeypatch.setattr(pipeline, "search", lambda *arguments: pytest.fail("it searched again"))
    pipeline.run(config, run)
    for name in ("plan.json", "checkpoint/config.json", "mask.safetensors"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()
    weights, expected = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (run, finished))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    record, before = read_record(run), read_record(finished)
    assert isinstance(record, Record)
    assert isinstance(before, Record)
    warning = "the exports were made again from the mask, after the numbers were measured"
    assert record.warnings == [*before.warnings, warning]
    assert (record.status, record.files) == ("finished", before.files)
    assert finished_before(config, run) is not None
    assert (run / "checkpoint" / "README.md").is_file()


def test_without_its_mask_a_run_is_run_again(config: Config, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    mask = run / "mask.safetensors"
    whole = mask.read_bytes()
    mask.write_bytes(whole[:-1])
    record = pipeline.run(config, run)
    assert record.status == "finished"
    assert mask.read_bytes() == whole


def test_a_refused_command_does_not_block_its_folder(tiny_checkpoint: Path, tmp_path: Path, config: Config) -> None:
    corpus = write_corpus(tmp_path / "stories.jsonl", paragraphs(60))
    wrong = validated(*small_run(tiny_checkpoint, corpus, "task.text_column=body"))
    with pytest.raises(UsageError, match=r"task\.text_column"):
        pipeline.run(wrong, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    assert pipeline.run(config, tmp_path / "run").status == "finished"


@pytest.mark.parametrize("damage", ["flipped", "cut", "foreign", "other model"])
def test_a_given_mask_is_looked_at_before_weights_are_loaded(
    config: Config, finished: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch, tiny_llama: Any
) -> None:
    whole = (finished / "mask.safetensors").read_bytes()
    contents = {
        "flipped": whole[:-1] + bytes([whole[-1] ^ 1]),
        "cut": whole[:-9],
        "foreign": (finished / "checkpoint" / "model.safetensors").read_bytes(),
        "other model": whole,
    }
    (tmp_path / "mask.safetensors").write_bytes(contents[damage])
    model = config.model
    if damage == "other model":
        tiny_llama(num_hidden_layers=2).save_pretrained(tmp_path / "model")
        model = replace(model, source=str(tmp_path / "model"))
    monkeypatch.setattr(pipeline, "load", lambda *arguments: pytest.fail("weights were loaded"))
    given = replace(config, optimizer=FromRun(folder=str(tmp_path)), model=model)
    with pytest.raises(UsageError, match=r"^optimizer\.folder: [^\n]+$"):
        pipeline.run(given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_given_mask_of_another_type_of_model_is_refused(finished: Path, tiny_llama: Any) -> None:
    """Equal counts of layers, heads and channels do not make it the same model."""
    with pytest.raises(UsageError, match=r"^optimizer\.folder: the mask in .* is not this model's: the plan is for"):
        check_owner(FromRun(folder=str(finished)), tiny_llama(vocab_size=77))
