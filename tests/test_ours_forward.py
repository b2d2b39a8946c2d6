"""Second-order pruning over widths on tiny models, from scores to the smaller model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import policyprune as pp
from encoders import make_encoder
from forking import forked
from harness import paragraphs, small_run, write_corpus

TEXTS = paragraphs(40)


@pytest.fixture(scope="module")
def llama(tiny_llama: Any, tiny_tokenizer: Any) -> Any:
    return tiny_llama(vocab_size=len(tiny_tokenizer), num_hidden_layers=4)


@pytest.mark.parametrize("budget", ["rate", "params", "flops"])
@pytest.mark.parametrize("units", [["attention", "ffn"], ["ffn"], ["attention_block", "ffn_block"], ["layer"]])
def test_every_budget_is_met_at_every_granularity(
    llama: Any, tiny_tokenizer: Any, budget: str, units: list[str]
) -> None:
    prunable = pp.PrunableModel(llama, units=units)
    keep = 0.9 if units == ["ffn"] else 0.75  # attention takes most of these
    found = pp.prune(prunable, TEXTS, tiny_tokenizer, keep=keep, budget=budget, method="ours_forward", length=16)
    report = found.report
    if budget == "rate":
        for kind in {row["kind"] for row in report.keep_rates}:
            rows = [row for row in report.keep_rates if row["kind"] == kind]
            assert sum(row["kept"] for row in rows) <= round(keep * sum(row["count"] for row in rows))
    else:
        name = "block_parameters" if budget == "params" else "block_macs"
        assert 0.4 * report.dense[name] < report.smaller[name] <= keep * report.dense[name]
    assert report.backwards == 0
    ids = torch.randint(5, 250, (2, 12))
    assert bool(found.model(ids).logits.isfinite().all())


def test_labels_are_not_needed(tiny_tokenizer: Any) -> None:
    """The widths of an encoder follow the dense model: other labels give the same ones."""
    model = make_encoder("SequenceClassification", num_labels=3).eval()
    ids, mask = torch.randint(5, 60, (24, 12)), torch.ones(24, 12, dtype=torch.long)
    widths = []
    for seed in (0, 1):
        labels = torch.randint(0, 3, (24,), generator=torch.Generator().manual_seed(seed))
        data = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        widths.append(pp.prune(model, data, keep=0.6, budget="flops", method="ours_forward").report.keep_rates)
    assert widths[0] == widths[1]


def test_a_second_budget_reads_what_the_first_one_measured(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLICYPRUNE_CACHE", str(tmp_path / "cache"))
    corpus = write_corpus(tmp_path / "stories.txt", paragraphs(150))

    def run(keep: float, name: str) -> dict[str, Any]:
        arguments = small_run(tiny_checkpoint, corpus, "method=ours_forward", f"budget.keep={keep}", "evaluation=none")
        done = forked(*arguments, f"hydra.run.dir={tmp_path / name}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        record: dict[str, Any] = json.loads((tmp_path / name / "record.json").read_text())
        return record

    def known() -> int:
        return sum(len(path.read_text().splitlines()) for path in (tmp_path / "cache").glob("second_order/*/losses*"))

    first = run(0.8, "first")
    measured = known()
    assert measured > 0
    second = run(0.5, "second")
    assert len(list((tmp_path / "cache").glob("second_order/*/statistics.safetensors"))) == 1
    assert second["calibration"] == first["calibration"]
    anew = known() - measured
    assert anew < measured  # those of single blocks are not measured again
    monkeypatch.setenv("POLICYPRUNE_CACHE", str(tmp_path / "other"))
    alone = run(0.5, "alone")
    assert alone["keep_rates"] == second["keep_rates"]
    masks = [(tmp_path / name / "mask.safetensors").read_bytes() for name in ("second", "alone")]
    assert masks[0] == masks[1]


@pytest.mark.parametrize("scope", ["per_layer", "uniform"])
def test_shares_that_the_budget_gives_are_taken(llama: Any, tiny_tokenizer: Any, scope: str) -> None:
    found = pp.prune(llama, TEXTS, tiny_tokenizer, keep=0.75, method="ours_forward", scope=scope, length=16)
    assert found.report.forwards == 0
    for kind in ("attention", "ffn"):
        assert len({row["kept"] for row in found.report.keep_rates if row["kind"] == kind}) == 1


def test_a_search_that_chooses_widths_alone_refuses_shares(llama: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(pp.UsageError, match=r"level_evolution chooses the widths of blocks, .* has chosen them"):
        pp.prune(
            llama, TEXTS, tiny_tokenizer, importance="obs", optimizer="level_evolution", scope="uniform", length=16
        )


def test_broken_weights_are_refused(llama: Any, tiny_tokenizer: Any, tiny_llama: Any) -> None:
    model = tiny_llama(vocab_size=len(tiny_tokenizer))
    model.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(pp.RunError, match="the loss of the dense model is not a number"):
        pp.prune(model, TEXTS, tiny_tokenizer, method="ours_forward", length=16)
