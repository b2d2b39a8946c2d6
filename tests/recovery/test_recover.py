"""Recovery on tiny models: it learns, it returns nothing worse, it goes on, it keeps its limits."""

import copy
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from policyprune.config.schema import Trained
from policyprune.recovery.material import Material, of_text
from policyprune.recovery.options import Distill, Finetune, Lora
from policyprune.recovery.recover import Recovered, Surroundings, held_out_loss, recover
from policyprune.recovery.trainer import Teaching, arguments_of, last_whole
from policyprune.tasks.text_sources import sources_of

SHORT = {"steps": 24, "batch_size": 8, "length": 16, "held_out": 16, "evaluations": 4, "dtype": "float32"}
FAST = {**SHORT, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def material(stories: Any, tiny_tokenizer: Any) -> Material:
    return of_text(Distill(**FAST), sources_of(stories), tiny_tokenizer, None)


def recovered(model: Any, options: Trained, material: Material, folder: Path, dense: Any = None) -> Recovered:
    around = Surroundings(teacher=dense, folder=folder, keep=0.6, seed=0, report=lambda values, step: None)
    return recover(model, options, material, around)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def loss_of(model: Any, material: Material, folder: Path) -> float:
    arguments = arguments_of(Distill(**FAST), material, folder, model.device, 1e-3, 0)
    return held_out_loss(model, material, arguments)


@pytest.mark.parametrize("kind", [Distill, Finetune])
def test_the_loss_goes_down_and_all_else_stays(
    kind: Any, smaller: Any, dense: Any, material: Material, folder: Path
) -> None:
    before, of_dense = weights(smaller), weights(dense)
    found = recovered(smaller, kind(**FAST), material, folder, dense)
    facts = found.facts
    assert facts["outcome"] == "recovered"
    assert facts["held_out"]["before"] == pytest.approx(loss_of(smaller, material, folder), rel=1e-5)
    assert facts["held_out"]["after"] == pytest.approx(loss_of(found.model, material, folder), rel=1e-5)
    assert facts["held_out"]["after"] < facts["held_out"]["before"] - 0.02
    assert (facts["steps"], facts["tokens"]) == (24, 24 * 8 * 16)
    assert [row["step"] for row in facts["curve"]] == [0, 6, 12, 18, 24]
    assert facts["curve"][-1]["loss"] < facts["curve"][1]["loss"]
    json.dumps(facts)
    assert same(weights(smaller), before), "what came in stays as it is"
    assert same(weights(dense), of_dense)
    shapes = {name: tensor.shape for name, tensor in before.items()}
    assert {name: tensor.shape for name, tensor in weights(found.model).items()} == shapes
    assert found.model.config.to_dict() == smaller.config.to_dict()
    assert not found.model.training
    assert not any(parameter.requires_grad for parameter in found.model.parameters())
    assert "_original_forward" not in vars(found.model), "the Trainer leaves nothing on the model"


def test_blocks_alone_leave_embeddings_as_they_are(smaller: Any, dense: Any, material: Material, folder: Path) -> None:
    found = recovered(smaller, Distill(**FAST, trained="blocks"), material, folder, dense)
    before, after = weights(smaller), weights(found.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("model.layers.") for name in changed)


@pytest.mark.parametrize(
    "options",
    [Finetune(**FAST), Lora(**{**FAST, "learning_rate": 1e-2}, task_loss=0.9, hidden_loss=0.01)],
    ids=["finetune", "lora"],
)
def test_gradient_checkpointing_keeps_less_and_changes_nothing(
    options: Trained, smaller: Any, dense: Any, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, kept = Teaching.compute_loss, dict[bool, int]()

    def counting(self: Teaching, model: Any, *args: Any, **kwargs: Any) -> Any:
        sizes = dict[int, int]()

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = original(self, model, *args, **kwargs)
        if model.training:
            kept[again] = sum(sizes.values())
        return loss

    monkeypatch.setattr(Teaching, "compute_loss", counting)
    found = []
    for again in (False, True):
        teacher = dense if options.needs_teacher else None
        short = replace(options, steps=6, evaluations=1, gradient_checkpointing=again)
        found.append(recovered(smaller, short, material, tmp_path / str(again), teacher))
    for name, tensor in weights(found[0].model).items():
        torch.testing.assert_close(weights(found[1].model)[name], tensor, msg=name)
    assert [own.facts["outcome"] for own in found] == 2 * ["recovered"]
    assert kept[True] < 0.8 * kept[False]


def test_what_is_returned_is_never_worse(smaller: Any, dense: Any, material: Material, folder: Path) -> None:
    found = recovered(smaller, Distill(**{**FAST, "learning_rate": 3.0}), material, folder, dense)
    assert found.facts["outcome"] == "no gain"
    assert same(weights(found.model), weights(smaller))
    shared = {tensor.data_ptr() for tensor in dense.parameters()}
    assert not shared & {tensor.data_ptr() for tensor in found.model.parameters()}


def test_no_gain_for_a_while_ends_it(smaller: Any, dense: Any, material: Material, folder: Path) -> None:
    options = Distill(**{**FAST, "learning_rate": 3.0, "patience": 2})
    assert recovered(smaller, options, material, folder, dense).facts["steps"] == 12


def test_the_best_is_returned_not_the_last(
    smaller: Any, dense: Any, material: Material, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After half of the steps training goes upwards."""
    original = Teaching.compute_loss

    def turning(self: Teaching, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, model, *args, **kwargs)
        return -9 * loss if model.training and self.state.global_step >= 10 else loss

    monkeypatch.setattr(Teaching, "compute_loss", turning)
    facts = recovered(smaller, Finetune(**FAST), material, folder).facts
    losses = [row["held_out_loss"] for row in facts["curve"]]
    assert 0 < losses.index(min(losses)) < 4
    assert facts["held_out"]["after"] == min(losses)


class StoppedError(Exception):
    """What ends a training in the middle."""


@pytest.mark.parametrize(("kind", "at"), [(Distill, [3]), (Distill, [8, 14, 23]), (Lora, [14])])
def test_a_training_that_is_stopped_ends_as_if_it_had_not_been(
    kind: Any,
    at: list[int],
    smaller: Any,
    dense: Any,
    material: Material,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = kind(**FAST, accumulate=2, weight_decay=0.1)
    whole = recovered(smaller, options, material, tmp_path / "whole", dense)
    original = Teaching.training_step
    for stop in at:

        def stopping(self: Teaching, *args: Any, stop: int = stop, **kwargs: Any) -> Any:
            if self.state.global_step >= stop:
                raise StoppedError
            return original(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Teaching, "training_step", stopping)
            with pytest.raises(StoppedError):
                recovered(smaller, options, material, tmp_path / "broken", dense)
        torch.manual_seed(stop)
    found = recovered(smaller, options, material, tmp_path / "broken", dense)
    assert same(weights(found.model), weights(whole.model))
    untimed = [
        [{key: value for key, value in row.items() if key != "seconds"} for row in facts["curve"]]
        for facts in (found.facts, whole.facts)
    ]
    assert untimed[0] == untimed[1]
    again = recovered(smaller, options, material, tmp_path / "broken", dense)  # it had ended, and is not trained again
    assert same(weights(again.model), weights(whole.model))
    assert again.facts["steps"] == 24


@pytest.mark.parametrize("processes", [1, 2])
def test_a_checkpoint_that_was_not_written_to_its_end_is_not_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """Neither by the process that writes its state last, nor by the others."""
    for name, value in (("WORLD_SIZE", str(processes)), ("RANK", "0"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    names = ["rng_state.pth"] if processes == 1 else ["rng_state_0.pth", "rng_state_1.pth"]
    for number, text in ((6, '{"log_history": []}'), (12, '{"log_hist'), (18, None), (24, '{"log_history": []}')):
        checkpoint = tmp_path / f"checkpoint-{number}"
        checkpoint.mkdir()
        for name in names:
            torch.save({}, checkpoint / name)
        if text is not None:
            (checkpoint / "trainer_state.json").write_text(text)
    last = tmp_path / "checkpoint-24" / names[-1]
    last.write_bytes(last.read_bytes()[:-10])
    assert last_whole(tmp_path) == tmp_path / "checkpoint-6"
    last.unlink()
    assert last_whole(tmp_path) == tmp_path / "checkpoint-6"


def test_seconds_are_kept(smaller: Any, dense: Any, material: Material, folder: Path) -> None:
    began = time.perf_counter()
    facts = recovered(smaller, Distill(**{**FAST, "steps": None, "seconds": 4.0}), material, folder, dense).facts
    assert 2.5 < time.perf_counter() - began < 6.0
    assert facts["steps"] > 10
    assert [row["step"] for row in facts["curve"]][-1] == facts["steps"]


def test_tokens_are_kept(smaller: Any, dense: Any, material: Material, folder: Path) -> None:
    options = Distill(**{**FAST, "steps": None, "tokens": 1000})
    assert recovered(smaller, options, material, folder, dense).facts["tokens"] == 8 * 128


def test_half_precision_comes_back_as_it_was(smaller: Any, dense: Any, material: Material, folder: Path) -> None:
    half = copy.deepcopy(smaller).to(torch.bfloat16)
    found = recovered(half, Distill(**FAST), material, folder, dense)
    assert found.model.dtype == torch.bfloat16
    held = found.facts["held_out"]
    assert held["before"] > held["after"] == pytest.approx(loss_of(found.model, material, folder), rel=1e-5)


def test_the_learning_rate_without_a_choice() -> None:
    options = Distill()
    assert [options.rate(keep, 576) for keep in (0.9, 0.8, 0.65, 0.5, 0.3)] == [1e-4, 1e-4, 1.5e-4, 2e-4, 2e-4]
    assert options.rate(0.5, 4096) == 2.8e-5
    assert replace(options, learning_rate=3e-4).rate(0.5, 4096) == 3e-4
    assert options.limits == (128, None, None)
    assert Distill(seconds=60).limits == (None, None, 60)
    assert math.isclose(Distill().task_share(labelled=True), 0.5)


def test_adapters_are_merged_and_kept(smaller: Any, dense: Any, material: Material, tmp_path: Path) -> None:
    from peft import PeftModel

    options = Lora(**{**FAST, "learning_rate": 1e-2}, rank=4, task_loss=1.0)
    around = without_teacher(tmp_path, tmp_path / "adapter")
    found = recover(smaller, options, material, around)
    assert found.facts["outcome"] == "recovered"
    assert found.facts["trained_parameters"] < 0.2 * sum(weight.numel() for weight in smaller.parameters())
    before, after = weights(smaller), weights(found.model)
    assert before.keys() == after.keys()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        name for name in before if name.endswith("proj.weight")
    }
    with_adapters = PeftModel.from_pretrained(copy.deepcopy(smaller), tmp_path / "adapter")
    ids = torch.stack(material.held_out)
    torch.testing.assert_close(with_adapters(ids).logits, found.model(ids).logits, atol=1e-4, rtol=1e-4)


def without_teacher(folder: Path, adapters: Path) -> Surroundings:
    return Surroundings(
        teacher=None, folder=folder / "trainer", keep=0.6, seed=0, report=lambda values, step: None, adapters=adapters
    )
