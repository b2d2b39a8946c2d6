"""Time of forward passes of whole models and of their layers. No real time is asserted."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from encoders import make_encoder
from policyprune.config.schema import Latency
from policyprune.evaluation.latency.forward import forward_seconds, latencies, layer_calls
from policyprune.models.adapter import adapt

MakeLlama = Callable[..., Any]


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
    assert alone[1].protocol | {"threads": 1} == {**PROTOCOL, "spread": None}
    assert not list(latencies(models, Latency(batch_sizes=[1], length=8, repeats=0)))


PROTOCOL = {"batch_size": 1, "length": 8, "repeats": 1, "threads": 1}
