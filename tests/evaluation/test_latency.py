"""Times of models that take turns, on a machine that also does something else, and what is timed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from encoders import make_encoder
from policyprune.config.schema import Latency
from policyprune.evaluation import latency
from policyprune.evaluation.latency import (
    forward_seconds,
    in_turns,
    latencies,
    layer_calls,
    ratios,
    relative,
    spread,
    times,
)
from policyprune.models.adapter import adapt

BUSY = {"dense": [1.0, 3.0, 2.0, 1.0, 1.5], "pruned": [0.8, 2.4, 1.6, 0.8, 1.2]}  # up to three times slower
PROTOCOL = {"batch_size": 8, "length": 128}
ONE_ROUND = {"batch_size": 1, "length": 8, "repeats": 1, "threads": 1}
MakeLlama = Callable[..., Any]


def test_the_ratio_holds_where_the_times_do_not() -> None:
    ((name, measure),) = ratios("latency_ratio", BUSY, "dense", PROTOCOL)
    assert (name, measure.metric, measure.unit) == ("pruned", "latency_ratio", "")
    assert measure.value == pytest.approx(0.8)
    assert measure.protocol == {**PROTOCOL, "spread": pytest.approx(0, abs=1e-9)}
    absolute = dict(times("latency", BUSY, PROTOCOL))
    assert absolute["dense"].value == pytest.approx(1500)
    assert absolute["dense"].unit == "ms"
    assert absolute["dense"].protocol["spread"] == pytest.approx(1.0 / 1.5)


def test_the_spread_is_that_of_the_paired_ratios() -> None:
    uneven = {"dense": [1.0] * 5, "pruned": [0.6, 0.7, 0.8, 0.9, 1.0]}
    ((_, measure),) = ratios("latency_ratio", uneven, "dense", PROTOCOL)
    assert measure.value == 0.8
    assert measure.protocol["spread"] == pytest.approx((0.9 - 0.7) / 0.8)


def test_one_round_says_nothing_of_its_spread() -> None:
    assert spread([1.0]) is None
    assert spread([1.0, 1.0]) == 0


def test_actions_take_turns_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, done = [0.0], []
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])

    def act(name: str, seconds: float) -> None:
        done.append(name)
        clock[0] += seconds * (1 + len(done) / 50)  # the machine gets slower and slower

    seconds = in_turns(
        {"a": lambda: act("a", 2), "b": lambda: act("b", 1)}, repeats=3, device=torch.device("cpu"), warm_ups=1
    )
    assert done == ["a", "b"] * 4
    assert [len(values) for values in seconds.values()] == [3, 3]
    assert relative(seconds, "a")["b"] == pytest.approx(0.5, rel=0.05)


def test_latency_of_each_model_is_positive(tiny_llama: MakeLlama) -> None:
    models = {"dense": tiny_llama(), "pruned": tiny_llama(intermediate_size=24)}
    seconds = forward_seconds(models, batch_size=2, length=16, repeats=2)
    assert list(seconds) == ["dense", "pruned"]
    assert all(len(values) == 2 and all(0 < value < 60 for value in values) for values in seconds.values())


def test_models_take_turns_and_the_warm_up_is_not_timed(tiny_llama: MakeLlama) -> None:
    models = {"first": tiny_llama(), "second": tiny_llama()}
    turns: list[str] = []
    shapes: set[tuple[int, ...]] = set()

    def note(name: str) -> Callable[..., None]:
        def hook(module: Any, arguments: Any, keywords: dict[str, Any]) -> None:
            turns.append(name)
            shapes.add(tuple(keywords["input_ids"].shape))

        return hook

    for name, model in models.items():
        model.base_model.register_forward_pre_hook(note(name), with_kwargs=True)
    forward_seconds(models, batch_size=3, length=8, repeats=2)
    assert turns == ["first", "second"] * 3
    assert shapes == {(3, 8)}


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_layers_alone_compute_what_they_do_in_the_model(tiny_llama: Any, family: str) -> None:
    model = tiny_llama() if family == "llama" else make_encoder()
    adapter = adapt(model)
    calls = layer_calls(model, adapter, 2, 7)
    assert len(calls) == len(adapter.layers)
    module, args, kwargs = calls[-1]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (2, 7), generator=generator)
    out = module(*args, **kwargs)
    hidden = model.base_model(input_ids=ids).last_hidden_state
    out = out[0] if isinstance(out, tuple) else out
    torch.testing.assert_close(model.model.norm(out) if family == "llama" else out, hidden)


def test_latency_is_measured_for_each_batch_size_and_compared_with_the_first_model(tiny_llama: MakeLlama) -> None:
    models = {"dense": tiny_llama(), "pruned": tiny_llama(intermediate_size=24)}
    options = Latency(batch_sizes=[1, 2], length=8, repeats=2)
    rows = [(name, row.metric, row.protocol["batch_size"]) for name, row in latencies(models, options)]
    assert rows == [
        (name, metric, size)
        for size in (1, 2)
        for name, metric in (("pruned", "latency_ratio"), ("dense", "latency"), ("pruned", "latency"))
    ]
    (alone,) = latencies({"evaluated": models["dense"]}, Latency(batch_sizes=[1], length=8, repeats=1))
    assert alone[0] == "evaluated"
    assert alone[1].protocol | {"threads": 1} == {**ONE_ROUND, "spread": None}
    assert not list(latencies(models, Latency(batch_sizes=[1], length=8, repeats=0)))
