"""A plan that was changed gives the same mask or is refused in one line, whatever was changed."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policyprune.errors import UsageError
from policyprune.models.adapter import adapt
from policyprune.models.examples import example
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.mask_file import save_mask
from policyprune.pruning.space import space_of
from policyprune.surgery.plan import Plan, base_of, check_base
from policyprune.surgery.plan_file import read_plan, write_plan

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def written(tiny_llama: Any, tmp_path: Path) -> dict[str, Any]:
    """A plan as JSON, of a random mask with scales, without its checksum: what somebody wrote by hand."""
    write(tiny_llama(), tmp_path / "plan.json")
    stated = json.loads((tmp_path / "plan.json").read_text())
    del stated["checksum"]
    assert isinstance(stated, dict)
    return stated


def write(
    model: Any, path: Path, kinds: tuple[str, ...] = ("attention", "ffn"), spared: tuple[float, float] = (0, 0)
) -> torch.Tensor:
    space = space_of(adapt(model), kinds, spared)
    mask = torch.rand(space.n, generator=torch.Generator().manual_seed(1)) < 0.6
    write_plan(path, Plan(base_of(model, "some/model", "main", "text"), space, mask, Compensation(mask * 0.5)))
    return mask


def reason(path: Path, content: Any) -> str:
    """Why a plan is refused, in one line."""
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UsageError) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        "3",
        '"plan"',
        "{",
        "[" * 100_000,
        "\x00",
        '{"format": "policyprune-plan-1"}',
        '{"base": 1, "units": []}',
    ],
)
def test_what_is_no_plan_is_refused(tmp_path: Path, content: str) -> None:
    assert "is no plan of policyprune" in reason(tmp_path / "plan.json", content)


def units(index: int, **changes: Any) -> Change:
    return lambda plan: plan["units"][index].update(changes)


def scale(value: Any) -> Change:
    return lambda plan: plan["units"][1]["scales"].__setitem__(0, value)


def base(**changes: Any) -> Change:
    return lambda plan: plan["base"].update(changes)


CHANGES: dict[str, tuple[Change, str]] = {
    "fewer than there are": (
        units(1, of=10, kept="0-9", scales=[1.0] * 10),
        "ffn of layer 0 is of 10, base.blocks says 48",
    ),
    "three thousand million": (units(0, of=3_000_000_000), r"units\[0\].of is 3000000000, not a number of units"),
    "none": (units(0, of=0), "units"),
    "a negative number": (units(0, of=-4), "units"),
    "a fraction": (units(0, of=4.0), "of is 4.0, not a number"),
    "a truth": (units(0, layer=True), "layer is true, not a number"),
    "a text": (units(0, of="4"), 'of is "4", not a number'),
    "an unknown layer": (units(0, layer=7), "attention of layer 7, which base.blocks has not"),
    "a negative layer": (units(0, layer=-1), "attention of layer -1, which base.blocks has not"),
    "an unknown kind": (units(0, kind="mlp"), 'kind is "mlp", not one of attention, ffn, hidden'),
    "another kind": (units(0, kind="ffn"), "ffn of layer 0 twice|ffn of layer 0 is of"),
    "hidden channels among others": (units(0, layer=-1, kind="hidden"), "other groups beside the hidden channels"),
    "a group twice": (lambda plan: plan["units"].append(plan["units"][0]), "attention of layer 0 twice"),
    "a group less": (lambda plan: plan["units"].pop(2), "units has nothing for attention of layer 1"),
    "the last group less": (lambda plan: plan["units"].pop(), "units has nothing for ffn of layer 2"),
    "another order": (lambda plan: plan["units"].reverse(), "in another order than base.blocks"),
    "no groups": (lambda plan: plan["units"].clear(), r"units is \[\], not a list of groups"),
    "a reversed range": (units(0, kept="3-1"), 'kept is "3-1", not ranges of numbers below 4 in rising order'),
    "ranges that overlap": (units(0, kept="0-2,1-3"), "in rising order"),
    "a range twice": (units(0, kept="1,1"), "in rising order"),
    "not in order": (units(0, kept="3,1"), "in rising order"),
    "neighbours": (units(0, kept="0,1"), "in rising order"),
    "past the end": (units(0, kept="0-4"), "numbers below 4"),
    "words": (units(0, kept="x"), "numbers below 4"),
    "half a range": (units(0, kept="1-"), "numbers below 4"),
    "other digits": (units(0, kept="\u0663"), "numbers below 4"),
    "a long number": (units(0, kept="9" * 5000), "numbers below 4"),
    "a list": (units(0, kept=[0, 1]), "numbers below 4"),
    "a surrogate": (units(0, kept="\ud800"), "numbers below 4"),
    "a scale less": (lambda plan: plan["units"][1]["scales"].pop(), r"scales is .* not a list of \d+ numbers"),
    "scales of one group less": (lambda plan: plan["units"][1].pop("scales"), "scales in 5 of 6 groups"),
    "no number among scales": (
        lambda plan: plan["units"][1]["scales"].__setitem__(0, float("nan")),
        "not finite numbers",
    ),
    "an infinite scale": (lambda plan: plan["units"][1]["scales"].__setitem__(0, 1e300), "not finite numbers"),
    "a text among scales": (lambda plan: plan["units"][1]["scales"].__setitem__(0, "1"), "not numbers"),
    "a key more": (lambda plan: plan.update(mask=[]), 'also "mask", which no plan has'),
    "a key of a unit more": (units(0, lost="1"), 'also "lost"'),
    "a key less": (lambda plan: plan["base"].pop("blocks"), "base has no blocks"),
    "attention that is no text": (base(attention=5), "base.attention is 5, not a text"),
    "a source beyond all length": (base(source="a" * 5000), "base.source is .*, not a text"),
    "a source that is no text": (base(source=3), "base.source is 3, not a text"),
    "no such head": (base(head="pipeline"), 'base.head is "pipeline", not one of AutoModelForCausalLM'),
    "no such dtype": (base(dtype="__doc__"), "base.dtype"),
    "blocks that are none": (base(blocks=[[0, "ffn"]]), r"base.blocks\[0\]"),
    "blocks of one kind": (base(blocks=[[0, "ffn", 48]]), "the attention and ffn of each layer once"),
    "no parameters": (base(parameters=None), "base.parameters is null"),
    "a base that is a list": (lambda plan: plan.update(base=[]), r"base is \[\], not an object"),
    "other edits": (lambda plan: plan.update(edits="/etc/passwd"), "edits is"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_fit_is_refused_by_name(written: dict[str, Any], tmp_path: Path, name: str) -> None:
    change, wanted = CHANGES[name]
    change(written)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(written))
    with pytest.raises(UsageError, match=wanted) as caught:
        read_plan(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).removeprefix(f"plan: {str(path)!r}")) < 300


def test_one_written_by_hand_is_taken(written: dict[str, Any], tiny_llama: Any, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(written))
    assert read_plan(path).apply(tiny_llama()).config.per_layer_config


@pytest.mark.parametrize("kinds", [("attention",), ("ffn",), ("layer",), ("hidden",)])
def test_a_plan_of_each_granularity_is_read_with_and_without_checksum(
    tiny_llama: Any, tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    model, path = tiny_llama(), tmp_path / "plan.json"
    space = space_of(adapt(model), kinds).units
    mask = torch.arange(space.n) % 3 > 0
    write_plan(path, Plan(base_of(model, "some/model", None, "text"), space, mask, None))
    for _ in range(2):
        plan = read_plan(path)
        check_base(plan, model)
        assert plan.space == space
        assert torch.equal(plan.mask, mask)
        path.write_text(
            json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "checksum"})
        )


def test_spared_layers_need_no_groups(tiny_llama: Any, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    mask = write(tiny_llama(), path, spared=(0.34, 0.34))
    plan = read_plan(path)
    assert {group.layer for group in plan.space.groups} == {1}
    assert torch.equal(plan.mask, mask)


def test_a_digit_changed_after_writing_is_noticed(tiny_llama: Any, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write(tiny_llama(), path)
    changed = path.read_text().replace('"kept": "0', '"kept": "1', 1)
    assert changed != path.read_text()
    assert "changed after it was written" in reason(path, changed)


@pytest.mark.parametrize(
    ("wanted", "changes"),
    [
        ("for 4 attention units in layer 0, this model has 2", {"num_key_value_heads": 2}),
        ("for 64 hidden channels, this model can lose 32", {"hidden_size": 32}),
    ],
)
def test_units_are_those_of_the_model(tiny_llama: Any, tmp_path: Path, wanted: str, changes: dict[str, Any]) -> None:
    model, path, other = tiny_llama(), tmp_path / "plan.json", tiny_llama(**changes)
    space = space_of(adapt(model), ["hidden"])
    write_plan(path, Plan(base_of(model, "m", None, "text"), space, torch.arange(space.n) % 3 > 0, None))
    stated = json.loads(path.read_text())
    del stated["checksum"]
    stated["base"]["parameters"] = base_of(other, "m", None, "text").parameters
    path.write_text(json.dumps(stated))
    with pytest.raises(UsageError, match=wanted):
        check_base(read_plan(path), other)


def test_weights_of_another_shape_are_refused(tiny_llama: Any, tmp_path: Path) -> None:
    model, path = tiny_llama(), tmp_path / "plan.json"
    space = space_of(adapt(model), ["ffn"])
    mask = torch.arange(space.n) % 3 > 0
    compensation = Compensation(weights={(1, "ffn"): torch.randn(64, 31)})
    write_plan(path, Plan(base_of(model, "m", None, "text"), space, mask, compensation))
    save_mask(tmp_path / "mask.safetensors", mask, space, mask.float(), compensation)
    with pytest.raises(UsageError, match=r"weight for the ffn of layer 1 is no \[64, 32\] of numbers"):
        check_base(read_plan(path), model)
    (tmp_path / "mask.safetensors").write_bytes(b"none")
    with pytest.raises(UsageError, match=r"mask\.safetensors' cannot be read"):
        read_plan(path)


VALUES = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        1,
        5,
        3_000_000_000,
        1 << 70,
        0.5,
        float("nan"),
        float("inf"),
        "",
        "0",
        "0-3",
        "5-2",
        "ffn",
        [],
        {},
        [[]],
    ]
)


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in JSON, as the keys to it."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for key, own in inside for place in places(own, (*path, key)))]


def changed(content: Any, place: tuple[Any, ...], how: str, value: Any) -> Any:
    if not place:
        return value if how == "replace" else content
    owner = content
    for key in place[:-1]:
        owner = owner[key]
    if how == "replace":
        owner[place[-1]] = value
    elif how == "remove":
        del owner[place[-1]]
    elif isinstance(owner, list):
        owner.insert(place[-1], copy.deepcopy(owner[place[-1]]))
    else:
        owner[f"{place[-1]} "] = owner[place[-1]]
    return content


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, torch.Tensor, Any]:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    model = example("llama")
    mask = write(model, path)
    return path, path.read_text(), mask, model


@given(st.integers(0, 10**6), st.sampled_from(["replace", "remove", "double"]), VALUES)
def test_any_change_gives_the_same_mask_or_one_line(original: Any, where: int, how: str, value: Any) -> None:
    path, text, mask, _ = original
    stated = json.loads(text)
    found = places(stated)
    assert_same_or_refused(path, json.dumps(changed(stated, found[where % len(found)], how, value)), mask)


@given(st.integers(0, 10**6), st.binary(max_size=3))
def test_any_bytes_give_the_same_mask_or_one_line(original: Any, where: int, value: bytes) -> None:
    path, text, mask, _ = original
    at = where % len(text)
    assert_same_or_refused(path, text.encode()[:at] + value + text.encode()[at + len(value) + where % 2 :], mask)


@given(st.integers(0, 10**6), st.sampled_from(["replace", "remove", "double"]), VALUES)
def test_without_a_checksum_a_change_fits_the_model_or_is_one_line(
    original: Any, where: int, how: str, value: Any
) -> None:
    path, text, _, model = original
    stated = json.loads(text)
    del stated["checksum"]
    found = places(stated)
    random.Random(where).shuffle(found)
    path.write_text(json.dumps(changed(stated, found[0], how, value)))
    plan = plan_or_line(path, model)
    if plan is None:
        return
    whole = {(layer, kind): count for layer, kind, count in base_of(model, "m", None, "text").blocks}
    assert all(whole[group.layer, group.kind] == group.count for group in plan.space.groups)


def assert_same_or_refused(path: Path, content: str | bytes, mask: torch.Tensor) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    plan = plan_or_line(path)
    assert plan is None or torch.equal(plan.mask, mask)


def plan_or_line(path: Path, model: Any = None) -> Plan | None:
    line = ""
    try:
        plan = read_plan(path)
        if model is not None:
            check_base(plan, model)
    except UsageError as error:
        line = str(error)
    assert "\n" not in line
    return None if line else plan
