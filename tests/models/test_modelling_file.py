"""The modelling file of a checkpoint: too old a transformers is refused, and ours is told from others by content."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoModelForCausalLM

from policyprune.models.adapter import adapt
from policyprune.models.modelling_file import MODULE, brings_only_ours, is_ours
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of
from policyprune.surgery.checkpoint import save_checkpoint
from policyprune.surgery.shrink import shrink

FILE = f"{MODULE}.py"


@pytest.fixture
def folder(tiny_llama: Any, tmp_path: Path) -> Path:
    """A checkpoint of unequal widths."""
    model = tiny_llama()
    adapter = adapt(model)
    space = space_of(adapter, ["ffn"])
    mask = space.group_of != 1
    save_checkpoint(shrink(PrunableModel(model, adapter, space), mask), None, adapter, tmp_path / "pruned")
    return tmp_path / "pruned"


@pytest.mark.parametrize("version", ["4.57.6", "5.0.0", "5.14.1", "5.9.0.dev0"])
def test_an_older_transformers_is_refused_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    with pytest.raises(ImportError, match=rf"^{FILE} needs transformers 5\.15 or later, this is {version}$"):
        exec((folder / FILE).read_text(), {"__name__": MODULE})


@pytest.mark.parametrize("version", [transformers.__version__, "5.15.0", "5.24.0.dev0", "6.0.0"])
def test_a_later_one_is_not(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    exec((folder / FILE).read_text(), {"__name__": MODULE})


def test_what_we_write_is_known_again(folder: Path) -> None:
    assert is_ours((folder / FILE).read_text())
    assert brings_only_ours(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("class EmptyBlock", "print('run')\n\n\nclass EmptyBlock"),
        ("TABLE = {", "TABLE = {print('run'): 1, "),
        ("super().__init__(config)", "super().__init__(config); print('run')"),
        ("import transformers\n", "import transformers, this\n"),
        ("# Written", "print('run')\n# Written"),
        ("LlamaForCausalLM", "MistralForCausalLM as LlamaForCausalLM"),
        (
            "narrow(self, TABLE, config.kept_hidden_size)\n",
            "narrow(self, TABLE, config.kept_hidden_size)\nimport this\n",
        ),
    ],
)
def test_a_changed_file_is_not_ours(folder: Path, old: str, new: str) -> None:
    content = (folder / FILE).read_text()
    assert old in content
    (folder / FILE).write_text(content.replace(old, new, 1))
    assert not is_ours((folder / FILE).read_text())
    assert not brings_only_ours(folder)


@pytest.mark.parametrize("named", ["somebody/else--modeling_pruned.PrunedLlamaForCausalLM", "other.Model", None, [1]])
def test_code_named_elsewhere_is_not_ours(folder: Path, named: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": named}}))
    assert not brings_only_ours(folder)


def test_more_code_is_not_ours(folder: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("print('run')")
    assert not brings_only_ours(folder)


def test_code_of_the_tokenizer_is_not_ours(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["x.Slow", null]}}')
    assert not brings_only_ours(folder)


def test_a_checkpoint_of_a_stock_class_names_no_code(tiny_llama: Any, tmp_path: Path) -> None:
    model = tiny_llama()
    model.config.auto_map = {"AutoModelForCausalLM": "somebody/else--modeling_other.Other"}
    save_checkpoint(model, None, adapt(model), tmp_path / "dense")
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert "auto_map" not in config
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert not brings_only_ours(tmp_path / "dense")  # it brings none
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "dense")) is transformers.LlamaForCausalLM
