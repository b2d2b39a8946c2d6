"""The verbs export, apply and evaluate, on one run of a tiny model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forking import forked
from harness import SMALL_EVALUATION, paragraphs, small_run, write_corpus
from policyprune.commands import verbs
from policyprune.errors import UsageError
from policyprune.runs.record import read_record

Call = Callable[[list[str]], int]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "stories.txt", paragraphs(150))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, corpus: Path) -> Path:
    """A finished run with a checkpoint and a GGUF file."""
    cwd = tmp_path_factory.mktemp("run")
    changes = ["optimizer=one_shot", "tuning=none", "budget.keep=0.7", "export=[hf,gguf]", "hydra.run.dir=run"]
    done = forked(*small_run(tiny_checkpoint, corpus, *changes, *SMALL_EVALUATION), cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "run"


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_run_writes_the_formats_its_plan_and_a_card(run: Path, tiny_checkpoint: Path) -> None:
    assert {"checkpoint", "model-f16.gguf", "plan.json", "mask.safetensors"} <= {path.name for path in run.iterdir()}
    assert not (run / "onnx").exists()
    card = (run / "checkpoint" / "README.md").read_text()
    assert "pruned to 70%" in card
    assert "| perplexity, 32 tokens" in card
    assert "optimizer=one_shot tuning=none budget.keep=0.7 'export=[hf,gguf]'" in card
    assert (run / "checkpoint" / "generation_config.json").is_file()
    assert json.loads((run / "plan.json").read_text())["base"]["source"] == str(tiny_checkpoint)


def test_a_plan_gives_the_checkpoint_again(run: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copy(run / "plan.json", tmp_path / "plan.json")
    assert verbs.apply([str(tmp_path / "plan.json")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "applied")
    made = tmp_path / "applied"
    assert weights(made) == weights(run / "checkpoint")
    assert {path.name: path.read_bytes() for path in made.iterdir()} == {
        path.name: path.read_bytes() for path in (run / "checkpoint").iterdir() if path.name != "README.md"
    }


def test_a_plan_is_laid_on_a_copy_but_on_no_other_model(
    run: Path, tiny_checkpoint: Path, tiny_llama: Any, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, copy)
    plan, output = str(run / "plan.json"), f"output={tmp_path / 'made'}"
    assert verbs.apply([plan, f"model.source={copy}", output]) == 0
    assert weights(tmp_path / "made") == weights(run / "checkpoint")
    vocabulary = json.loads((copy / "config.json").read_text())["vocab_size"]
    tiny_llama(vocab_size=vocabulary, intermediate_size=40).save_pretrained(copy)
    with pytest.raises(UsageError, match="48 ffn units in layer 0, this model has 40"):
        verbs.apply([plan, f"model.source={copy}", f"output={tmp_path / 'other'}"])
    assert not (tmp_path / "other").exists()


def test_a_run_without_checkpoint_is_exported_from_its_plan(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    shutil.rmtree(bare / "checkpoint")
    with pytest.raises(UsageError, match="has no checkpoint, policyprune export "):
        verbs.evaluate([str(bare)])
    assert verbs.export([str(bare), "format=hf"]) == 0
    assert weights(bare / "checkpoint") == weights(run / "checkpoint")
    assert (bare / "checkpoint" / "README.md").is_file()


def test_export_of_a_run_and_of_a_checkpoint(run: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert verbs.export([str(run), "format=gguf", f"output={tmp_path / 'again.gguf'}"]) == 0
    again, first = (tmp_path / "again.gguf").read_bytes(), (run / "model-f16.gguf").read_bytes()
    assert len(again) == pytest.approx(len(first), abs=64)  # the name in it differs
    assert verbs.export([str(tiny_checkpoint), "format=hf", "dtype=bf16", f"output={tmp_path / 'half'}"]) == 0
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert verbs.export([str(run), "format=plan", f"output={tmp_path / 'shared.json'}"]) == 0
    assert (tmp_path / "shared.json").read_bytes() == (run / "plan.json").read_bytes()


@pytest.mark.parametrize(
    ("verb", "arguments", "reason"),
    [
        (verbs.export, ["{run}"], "format: no value given"),
        (verbs.export, ["{run}", "format=zip"], "format: 'zip' is not one of hf, onnx, gguf, plan"),
        (verbs.export, ["{run}", "format=onnx", "dtype=q8_0"], "for format=onnx 'q8_0' is not one of f32"),
        (verbs.export, ["{run}", "format=gguf", "dtype=bf16"], "'bf16' is not one of f32, f16, q8_0"),
        (verbs.export, ["{run}", "format=gguf", "dtype=q8_0"], "q8_0 needs heads"),
        (verbs.export, ["{run}", "format=hf", "output={run}"], "holds other files, name another folder"),
        (verbs.export, ["{run}", "format=gguf", "output={run}"], "is a folder, name a file"),
        (verbs.export, ["{run}/checkpoint", "format=plan"], "plan needs the folder of a run"),
        (verbs.export, ["{run}/checkpoint", "format=onnx"], "model.trust_remote_code: false, but the layers"),
        (verbs.export, ["{run}", "format=hf", "typo=1"], "typo: unknown key"),
        (verbs.export, ["nowhere", "format=hf"], "'nowhere' is no folder of a run, no checkpoint and no hub id"),
        (verbs.export, ["format=hf"], "export: name a run folder, a checkpoint or a hub id first"),
        (verbs.apply, ["{run}/record.json"], "is no plan of policyprune"),
        (verbs.apply, ["missing.json"], "cannot be read"),
        (verbs.apply, ["{run}/plan.json", "model=nonesuch"], "'nonesuch' is not one of"),
        (verbs.evaluate, [], "evaluate: name a run folder, a checkpoint or a hub id first"),
        (verbs.evaluate, ["{run}", "evaluation.one_shot=[global]"], "compared in a run"),
        (verbs.evaluate, ["{run}", "task=nonesuch"], "task: 'nonesuch' is not one of"),
    ],
)
def test_refusals(
    verb: Call, arguments: list[str], reason: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["policyprune"])
    before = sorted(run.rglob("*"))
    with pytest.raises(UsageError) as refused:
        verb([argument.format(run=run) for argument in arguments])
    assert reason in str(refused.value)
    assert sorted(run.rglob("*")) == before
    assert not list(tmp_path.rglob("record.json"))


def test_evaluate_measures_a_run_again_and_only_once(run: Path, tmp_path: Path) -> None:
    done = forked("evaluate", str(run), "hydra.run.dir=again", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record, first = read_record(tmp_path / "again"), read_record(run)
    assert record is not None
    assert first is not None
    assert record.status == "finished"
    assert record.command[1:] == ["evaluate", str(run)]
    assert {row.subject for row in record.results} == {"evaluated"}
    for metric in ("perplexity", "parameters", "block_macs"):
        (again,) = (row for row in record.results if row.metric == metric)
        (wanted,) = (row for row in first.results if (row.metric, row.subject) == (metric, "pruned"))
        assert again.value == pytest.approx(wanted.value, rel=1e-6)
        assert again.protocol == wanted.protocol
    assert "evaluated" in done.stdout

    written = (tmp_path / "again" / "record.json").stat().st_mtime_ns
    assert forked("evaluate", str(run), "hydra.run.dir=again", cwd=tmp_path).returncode == 0
    assert (tmp_path / "again" / "record.json").stat().st_mtime_ns == written
    refused = forked("evaluate", str(run), "evaluation.max_tokens=256", "hydra.run.dir=again", cwd=tmp_path)
    assert refused.returncode == 2
    assert "holds a run of another config" in refused.stderr


def test_evaluate_measures_anyones_checkpoint(tiny_checkpoint: Path, run: Path, corpus: Path, tmp_path: Path) -> None:
    changes = ["task=text", f"task.files=[{corpus}]", *SMALL_EVALUATION, "evaluation.fresh_process=true"]
    done = forked("evaluate", str(tiny_checkpoint), *changes, "hydra.run.dir=dense", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record, first = read_record(tmp_path / "dense"), read_record(run)
    assert record is not None
    assert first is not None
    values = {row.subject: row.value for row in record.results if row.metric == "perplexity"}
    (wanted,) = (row.value for row in first.results if (row.metric, row.subject) == ("perplexity", "dense"))
    assert values == {"evaluated": pytest.approx(wanted, rel=1e-6), "reloaded": pytest.approx(wanted, rel=1e-4)}
