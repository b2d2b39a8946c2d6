"""export and apply refuse before anything is written, and put nothing in the place of what is no export."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import paragraphs, small_run, validated, write_corpus
from policyprune.commands import export as exporting
from policyprune.commands import run as pipeline
from policyprune.commands import verbs
from policyprune.errors import UsageError

FAST = ["evaluation.fresh_process=false", "evaluation.one_shot=[]", "evaluation.latency.repeats=0"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A finished run with a checkpoint."""
    top = tmp_path_factory.mktemp("exporting")
    corpus = write_corpus(top / "stories.txt", paragraphs(150))
    few = ["evaluation.lengths=[32]", "evaluation.max_tokens=256", "export=hf"]
    pipeline.run(
        validated(*small_run(tiny_checkpoint, corpus, "optimizer=one_shot", "tuning=none", *FAST, *few)), top / "run"
    )
    return top / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals come before the weights are read."""
    monkeypatch.setattr(exporting, "load_as", lambda *arguments: pytest.fail("weights are read"))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(verb: Callable[[list[str]], int], arguments: list[str], around: Path) -> str:
    before = everything(around)
    with pytest.raises(UsageError) as caught:
        verb(arguments)
    assert everything(around) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("_no_weights")
@pytest.mark.parametrize("missing", ["optimizer", "task", "granularity"])
def test_a_record_that_makes_no_card_is_refused_before_the_checkpoint_is_written(
    run: Path, tmp_path: Path, missing: str
) -> None:
    record = json.loads((run / "record.json").read_text())
    record["config"][missing] = {}
    (run / "record.json").write_text(json.dumps(record))
    line = refused(verbs.export, [str(run), "format=hf", f"output={tmp_path / 'new'}"], tmp_path)
    assert "no model card can be made from" in line


@pytest.mark.usefixtures("_no_weights")
def test_a_run_without_plan_is_refused_before_the_checkpoint_is_written(run: Path, tmp_path: Path) -> None:
    (run / "plan.json").unlink()
    assert "cannot be read" in refused(verbs.export, [str(run), "format=hf", f"output={tmp_path / 'new'}"], tmp_path)


@pytest.mark.usefixtures("_no_weights")
@pytest.mark.parametrize("verb", ["apply", "export"])
def test_units_that_do_not_fit_are_refused_before_weights_are_read(run: Path, tmp_path: Path, verb: str) -> None:
    shutil.rmtree(run / "checkpoint")
    plan = json.loads((run / "plan.json").read_text())
    del plan["checksum"]
    plan["units"][1] |= {"of": 10, "kept": "0-9"}
    (run / "plan.json").write_text(json.dumps(plan))
    if verb == "apply":
        line = refused(verbs.apply, [str(run / "plan.json")], tmp_path)
    else:
        line = refused(verbs.export, [str(run), "format=hf"], tmp_path)
    assert "ffn of layer 0 is of 10, base.blocks says 48" in line


@pytest.mark.usefixtures("_no_weights")
@pytest.mark.parametrize("form", ["hf", "onnx", "gguf", "plan"])
def test_nothing_of_others_is_replaced(run: Path, tmp_path: Path, form: str) -> None:
    folder, file = tmp_path / "project", tmp_path / "thesis.txt"
    (folder / "src").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    file.write_text("all of it")
    for place in (folder, file, run, run.parent, file / "below", tmp_path / ("n" * 300), Path("/proc/nowhere/new")):
        assert "output: " in refused(verbs.export, [str(run), f"format={form}", f"output={place}"], tmp_path)


@pytest.mark.usefixtures("_no_weights")
def test_the_model_that_is_exported_is_not_replaced(run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoint"
    arguments = ["format=hf", f"output={checkpoint}", "model.trust_remote_code=true"]
    assert "is or holds what is exported" in refused(verbs.export, [str(checkpoint), *arguments], tmp_path)
    shutil.copytree(checkpoint, tmp_path / "dense")
    arguments = [f"model.source={tmp_path / 'dense'}", f"output={tmp_path / 'dense'}"]
    assert "is or holds what is exported" in refused(verbs.apply, [str(run / "plan.json"), *arguments], tmp_path)


def test_an_export_is_replaced_by_the_next_one(run: Path, tmp_path: Path) -> None:
    place = tmp_path / "a [1]" / "out"
    for _ in range(2):
        assert verbs.export([str(run), "format=hf", f"output='{place}'"]) == 0
        assert verbs.export([str(run), "format=plan", f"output='{place.parent / 'plan.json'}'"]) == 0
    assert (place / "model.safetensors").read_bytes() == (run / "checkpoint" / "model.safetensors").read_bytes()
    assert (place.parent / "plan.json").read_bytes() == (run / "plan.json").read_bytes()
    assert (place / "README.md").is_file()


def test_a_chat_template_is_kept(tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from policyprune.models.adapter import adapt
    from policyprune.surgery.checkpoint import save_checkpoint

    tiny_tokenizer.chat_template = "{{ messages[0]['content'] }}!"
    model = tiny_llama()
    save_checkpoint(model.to(torch.float16), tiny_tokenizer, adapt(model), tmp_path / "chat")
    again = AutoTokenizer.from_pretrained(tmp_path / "chat")
    assert again.apply_chat_template([{"role": "user", "content": "the dog"}], tokenize=False) == "the dog!"
