"""A plan written, read, and laid on its model again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders import make_encoder
from policyprune.errors import UsageError
from policyprune.models.adapter import adapt
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.mask_file import save_mask
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of
from policyprune.surgery.plan import Plan, base_of
from policyprune.surgery.plan_file import read_plan, write_plan
from policyprune.surgery.shrink import shrink


def planned(model: Any, path: Path, tuned: bool) -> Any:
    """Prune at random, write the plan, return the smaller model."""
    adapter = adapt(model)
    space = space_of(adapter, ["attention", "ffn"])
    mask = torch.rand(space.n) < 0.6
    space.views(mask)[1, "attention"].zero_()
    compensation = Compensation(mask * (0.5 + torch.rand(space.n))) if tuned else None
    write_plan(path, Plan(base_of(model, "some/model", "main", "text"), space, mask, compensation))
    return shrink(PrunableModel(model, adapter, space), mask, compensation)


@pytest.mark.parametrize("tuned", [True, False])
def test_a_plan_gives_the_same_weights_again(tiny_llama: Any, tmp_path: Path, tuned: bool) -> None:
    model = tiny_llama()
    smaller = planned(model, tmp_path / "plan.json", tuned)
    plan = read_plan(tmp_path / "plan.json")
    assert (plan.base.source, plan.base.revision, plan.base.dtype) == ("some/model", "main", "float32")
    again = plan.apply(model)
    expected = smaller.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())
    assert again.config.to_dict() == smaller.config.to_dict()


def test_a_plan_is_readable(tiny_llama: Any, tmp_path: Path) -> None:
    model = tiny_llama()
    space = space_of(adapt(model), ["attention"])
    mask = torch.tensor([1, 1, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1], dtype=torch.bool)
    write_plan(tmp_path / "plan.json", Plan(base_of(model, "m", None, "text"), space, mask, None))
    units = json.loads((tmp_path / "plan.json").read_text())["units"]
    assert [own["kept"] for own in units] == ["0-1,3", "", "0-3"]
    assert {(own["kind"], own["of"]) for own in units} == {("attention", 4)}
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_hidden_layers": 2}, "for 6 blocks, this model has 4"),
        ({"intermediate_size": 40}, "48 ffn units in layer 0, this model has 40"),
        ({"vocab_size": 290}, "parameters, this model has"),
    ],
)
def test_another_shape_is_refused(tiny_llama: Any, tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    planned(tiny_llama(), tmp_path / "plan.json", tuned=False)
    with pytest.raises(UsageError, match=reason):
        read_plan(tmp_path / "plan.json").apply(tiny_llama(**changes))


def test_another_type_or_head_is_refused(tiny_llama: Any, tmp_path: Path) -> None:
    planned(tiny_llama(), tmp_path / "plan.json", tuned=False)
    with pytest.raises(UsageError, match="of type 'llama', not 'bert'"):
        read_plan(tmp_path / "plan.json").apply(make_encoder())
    planned(make_encoder(), tmp_path / "plan.json", tuned=False)
    with pytest.raises(UsageError, match="for AutoModelForSequenceClassification, not AutoModelForQuestionAnswering"):
        read_plan(tmp_path / "plan.json").apply(make_encoder("QuestionAnswering"))


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"format": "policyprune-plan-9"}')
    with pytest.raises(UsageError, match="this version reads policyprune-plan-1"):
        read_plan(tmp_path / "plan.json")
    with pytest.raises(UsageError, match="cannot be read"):
        read_plan(tmp_path / "missing.json")


def test_weights_and_biases_are_read_from_the_mask_file_beside_the_plan(tiny_llama: Any, tmp_path: Path) -> None:
    model, plan, masks = tiny_llama(), tmp_path / "plan.json", tmp_path / "mask.safetensors"
    adapter = adapt(model)
    space = space_of(adapter, ["ffn"])
    mask = torch.rand(space.n) < 0.6
    kept = {key: int(view.sum()) for key, view in space.views(mask).items()}
    weights = {key: torch.randn(64, count) for key, count in kept.items()}
    compensation = Compensation(weights=weights, biases={key: torch.randn(64) for key in kept})
    write_plan(plan, Plan(base_of(model, "m", None, "text"), space, mask, compensation))
    with pytest.raises(UsageError, match="needs the weights in mask"):
        read_plan(plan)
    save_mask(masks, mask, space, mask.float(), compensation)
    again, expected = read_plan(plan).apply(model), shrink(PrunableModel(model, adapter, space), mask, compensation)
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert again.config.to_dict() == expected.config.to_dict()
    save_mask(masks, ~mask, space, mask.float(), None)
    with pytest.raises(UsageError, match="of different runs"):
        read_plan(plan)
