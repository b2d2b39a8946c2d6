"""The verb `doctor`: what it finds, what it checks, and that it notices a wrong table."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from policyprune.commands import verbs
from policyprune.errors import UsageError
from policyprune.models.adapter import adapt
from policyprune.models.examples import example, miniature, random_model
from policyprune.models.families import FAMILIES
from policyprune.surgery.checkpoint import save_checkpoint
from policyprune.surgery.equivalence import probe_of, random_mask
from policyprune.surgery.shrink import shrink

PHI3 = {"hidden_size": 3072, "num_attention_heads": 32, "intermediate_size": 8192, "num_hidden_layers": 32}


def config_folder(folder: Path, kind: str, **sizes: Any) -> str:
    AutoConfig.for_model(kind, **sizes).save_pretrained(folder)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    return f"model.source={folder}"


def test_a_config_alone_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verbs.doctor([config_folder(tmp_path / "phi", "phi3", **PHI3)]) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    head = 3072 // 32
    assert ["attention", "0-31", "32", str(head), f"{4 * 3072 * head:,}"] in [line[:5] for line in lines]
    assert ["ffn", "0-31", "8192", "1", f"{3 * 3072:,}", f"{3 * 3072 * 128:,}"] in lines
    assert "3,821,079,552 parameters" in printed  # what the model card of Phi-3-mini says: 3.8B
    assert ["hidden", "all", "together", "3072"] in [line[:4] for line in lines]
    assert printed.count(" ok") == 6
    assert "FAILED" not in printed


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the check in a fresh process, which takes seconds."""
    monkeypatch.setattr("policyprune.commands.doctor.reloaded_gaps", lambda subjects: dict.fromkeys(subjects, 0.0))


@pytest.mark.usefixtures("one_process")
def test_it_says_what_stays_dense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verbs.doctor([config_folder(tmp_path / "olmo", "olmo2", hidden_size=64, num_attention_heads=4)]) == 0
    assert "attention, unless it goes as a whole: queries and keys are normalised over all heads" in (
        capsys.readouterr().out
    )


@pytest.mark.usefixtures("one_process")
def test_a_wrong_table_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    right = FAMILIES["gpt_neox"]
    wrong = replace(right, attention=replace(right.attention, interleaved=False))
    monkeypatch.setitem(FAMILIES, "gpt_neox", wrong)
    source = config_folder(tmp_path / "neox", "gpt_neox", hidden_size=64, num_attention_heads=4)
    assert verbs.doctor([source]) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.usefixtures("one_process")
def test_a_missing_size_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """The shrunk model does not even run then."""
    right = FAMILIES["opt"]
    monkeypatch.setitem(FAMILIES, "opt", replace(right, attention=replace(right.attention, sizes=())))
    sizes = {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 24, "num_attention_heads": 4}
    assert verbs.doctor([config_folder(tmp_path / "opt", "opt", **sizes)]) == 1
    assert "FAILED (inf)" in capsys.readouterr().out


@pytest.mark.usefixtures("one_process")
def test_a_pruned_checkpoint_shows_its_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subject = probe_of(example("llama"))
    mask = random_mask(subject.space, without=[(1, "attention")])
    save_checkpoint(shrink(subject, mask), None, subject.adapter, tmp_path / "pruned")
    with pytest.raises(UsageError, match=r"model\.trust_remote_code"):
        verbs.doctor([f"model.source={tmp_path / 'pruned'}"])
    assert verbs.doctor([f"model.source={tmp_path / 'pruned'}", "model.trust_remote_code=true"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["attention", "1", "0"] in [line[:3] for line in lines]
    channels = int(subject.space.views(mask)[2, "ffn"].sum())
    assert ["ffn", "2", str(channels)] in [line[:3] for line in lines]


def test_flags_of_a_run_are_refused() -> None:
    with pytest.raises(UsageError, match="--cfg: no flag of policyprune doctor, it has --families"):
        verbs.doctor(["--cfg", "job"])
    with pytest.raises(UsageError, match="doctor: give model=option"):
        verbs.doctor(["--families", "model=llama2_7b"])


def test_an_unknown_family_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'ctrl'.*docs/add-a-model\.md"):
        verbs.doctor([config_folder(tmp_path / "ctrl", "ctrl", n_embd=8)])
    with pytest.raises(UsageError, match=r"model\.source: .* does not exist"):
        verbs.doctor([f"model.source={tmp_path / 'nothing'}"])
    with pytest.raises(UsageError, match=r"model: 'llamma' is not one of"):
        verbs.doctor(["model=llamma"])


def test_the_small_copy_keeps_what_makes_the_architecture() -> None:
    config = AutoConfig.for_model("gemma3_text", num_hidden_layers=12)
    with torch.device("meta"):
        dense = random_structure(config)
    small = miniature(config, adapt(dense))
    assert set(small.layer_types) == set(config.layer_types)
    assert len(small.layer_types) == small.num_hidden_layers == 6
    assert (small.head_dim, small.sliding_window) == (config.head_dim, config.sliding_window)
    assert small.num_attention_heads // small.num_key_value_heads == 2
    assert config.num_hidden_layers == 12
    random_model(small, "CausalLM")


def random_structure(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config)
