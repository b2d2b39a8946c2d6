"""The fresh process runs a checkpoint's code with leave or where it is ours, and finds the packages of this one."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import validated
from policyprune.config import targets
from policyprune.errors import UsageError
from policyprune.evaluation import fresh_process
from policyprune.evaluation.fresh_process import check_fresh_process, logits_elsewhere, perplexity_elsewhere
from policyprune.models.examples import example
from policyprune.models.modelling_file import brings_only_ours
from policyprune.surgery.checkpoint import save_checkpoint
from policyprune.surgery.equivalence import probe_of, random_mask
from policyprune.surgery.shrink import shrink

FOREIGN = """
from pathlib import Path
from transformers import LlamaForCausalLM
Path({mark!r}).write_text("ran")
class Other(LlamaForCausalLM):
    pass
"""
WINDOWS = {24: torch.arange(48).reshape(2, 24)}


@pytest.fixture
def foreign(tmp_path: Path, tiny_llama: Any) -> tuple[Path, Path]:
    """A checkpoint with code of its own, and the file that it writes when it runs."""
    folder, mark = tmp_path / "foreign", tmp_path / "mark"
    tiny_llama().save_pretrained(folder)
    (folder / "modeling_pruned.py").write_text(FOREIGN.format(mark=str(mark)))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_pruned.Other"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, mark


@pytest.mark.parametrize("trusted", [False, True])
def test_foreign_code_runs_only_with_leave(foreign: tuple[Path, Path], trusted: bool, tiny_llama: Any) -> None:
    folder, mark = foreign
    perplexity_elsewhere(folder, WINDOWS, tiny_llama(), 100, trusted)
    assert mark.exists() == trusted


def test_our_own_code_needs_none(tmp_path: Path) -> None:
    subject = probe_of(example("llama"))
    smaller = shrink(subject, random_mask(subject.space))
    save_checkpoint(smaller, None, subject.adapter, tmp_path / "own")
    ids = torch.arange(20).reshape(2, 10)
    logits = logits_elsewhere({tmp_path / "own": ("AutoModelForCausalLM", ids)})[tmp_path / "own"]
    torch.testing.assert_close(logits, smaller(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("verb", "stated"), [("evaluate", False), ("evaluate", True), ("export", True)])
def test_a_record_gives_no_leave(verb: str, stated: bool, foreign: tuple[Path, Path], tmp_path: Path) -> None:
    """Whoever made the folder made its record too."""
    folder, _ = foreign
    run = tmp_path / "run"
    run.mkdir()
    folder.rename(run / "checkpoint")
    config = asdict(validated())
    config["model"] |= {"name": "x", "trust_remote_code": stated}
    (run / "record.json").write_text(json.dumps({"schema": 1, "status": "finished", "config": config}))
    target = targets.find(str(run), brings_only_ours)
    words = targets.evaluating(target, []) if verb == "evaluate" else targets.exporting(target)
    assert "model.trust_remote_code=False" in words


def test_packages_of_this_process_are_found_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with PYTHONPATH or the user's own packages, which an isolated interpreter does not look at."""
    (tmp_path / "only_here.py").write_text("value = 5")
    monkeypatch.syspath_prepend(tmp_path)
    assert fresh_process._python("import only_here; print(only_here.value)").split() == ["5"]
    check_fresh_process()


def test_an_interpreter_without_torch_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if "site-packages" not in folder])
    with pytest.raises(UsageError, match=r"^evaluation\.fresh_process: .*no torch.* set it to false$"):
        check_fresh_process()
