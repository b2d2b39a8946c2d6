"""Recovery by the Python API."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import policyprune as pp
from encoders import make_encoder
from harness import paragraphs

TEXTS = paragraphs(80)
SHORT = {"steps": 16, "length": 16, "learning_rate": 3e-3, "evaluations": 2, "dtype": "float32"}


@pytest.fixture(scope="module")
def pruned(tiny_llama: Any, tiny_tokenizer: Any) -> pp.PruningResult:
    model = tiny_llama(vocab_size=len(tiny_tokenizer))
    return pp.prune(model, TEXTS, tiny_tokenizer, keep=0.6, method="magnitude", length=16, bos=False)


def test_a_pruning_is_recovered_measured_and_saved(pruned: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in pruned.model.state_dict().items()}
    generator = torch.random.get_rng_state()
    found = pp.recover(pruned, TEXTS, tiny_tokenizer, recovery=pp.Finetune(**SHORT))
    assert torch.equal(generator, torch.random.get_rng_state())
    assert found.report["outcome"] == "recovered"
    first, second = (
        pp.evaluate(own, TEXTS, tiny_tokenizer, length=16, bos=False) for own in (pruned.model, found.model)
    )
    assert second.loss < first.loss - 0.5
    assert all(torch.equal(before[name], tensor) for name, tensor in pruned.model.state_dict().items())
    again = pp.recover(pruned, TEXTS, tiny_tokenizer, recovery=pp.Finetune(**SHORT))
    assert all(
        torch.equal(own, other) for own, other in zip(found.model.parameters(), again.model.parameters(), strict=True)
    )
    found.save(tmp_path / "saved", tiny_tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    ids = torch.arange(24)[None]
    torch.testing.assert_close(loaded(ids).logits, found.model(ids).logits)


def test_token_ids_and_a_dense_model_of_ones_own(pruned: Any) -> None:
    ids = torch.randint(0, 200, (40, 12))
    found = pp.recover(pruned.model, ids, dense=pruned.prunable.model, recovery=pp.Distill(**SHORT))
    assert found.report["tokens"] == 16 * 8 * 12
    assert found.report["held_out"]["items"] == 5


def test_labelled_examples() -> None:
    dense, smaller = (make_encoder(seed=seed, spread=0.05) for seed in (0, 1))
    ids = torch.randint(0, 300, (64, 10))
    data = {"input_ids": ids, "labels": (ids[:, 0] > 150).long(), "attention_mask": torch.ones_like(ids)}
    found = pp.recover(smaller, data, dense=dense, recovery=pp.Distill(**{**SHORT, "batch_size": 8}))
    assert found.report["task_share"] == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recovery": "none"}, "recovery: 'none' does nothing"),
        ({"recovery": "retrain"}, "recovery: 'retrain' is not one of distill, finetune, lora, none"),
        ({"recovery": pp.Distill(seconds=0)}, "recovery.seconds: 0.* must be above 0"),
        ({"recovery": "distill"}, "dense: recovery='distill' needs the dense model"),
        ({"dense": "tiny"}, "dense: 'tiny' is no transformers model"),
        ({"recovery": "finetune", "data": TEXTS[:1]}, "data: .* sequences are too few"),
        ({"recovery": "finetune", "seed": -1}, "seed: -1 is out of range"),
    ],
)
def test_wrong_values_are_one_line(pruned: Any, tiny_tokenizer: Any, changes: dict[str, Any], message: str) -> None:
    arguments = {"data": TEXTS, "tokenizer": tiny_tokenizer, **changes}
    with pytest.raises(pp.UsageError, match=message):
        pp.recover(pruned.model, **arguments)


def test_a_dense_model_of_another_vocabulary_is_refused(pruned: Any, tiny_llama: Any, tiny_tokenizer: Any) -> None:
    other = tiny_llama(vocab_size=len(tiny_tokenizer) - 10)
    with pytest.raises(
        pp.UsageError, match=r"^dense: the dense model tells \d+ tokens or classes apart, the smaller one"
    ):
        pp.recover(pruned.model, TEXTS, tiny_tokenizer, dense=other, recovery=pp.Distill(**SHORT))
