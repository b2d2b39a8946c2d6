"""Times of models that take turns, on a machine that also does something else."""

import pytest
import torch

from policyprune.evaluation.latency import rounds
from policyprune.evaluation.latency.rounds import ratios, spread, times

BUSY = {"dense": [1.0, 3.0, 2.0, 1.0, 1.5], "pruned": [0.8, 2.4, 1.6, 0.8, 1.2]}  # up to three times slower
PROTOCOL = {"batch_size": 8, "length": 128}


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
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: clock[0])

    def act(name: str, seconds: float) -> None:
        done.append(name)
        clock[0] += seconds * (1 + len(done) / 50)  # the machine gets slower and slower

    seconds = rounds.in_turns(
        {"a": lambda: act("a", 2), "b": lambda: act("b", 1)}, repeats=3, device=torch.device("cpu"), warm_ups=1
    )
    assert done == ["a", "b"] * 4
    assert [len(values) for values in seconds.values()] == [3, 3]
    assert rounds.relative(seconds, "a")["b"] == pytest.approx(0.5, rel=0.05)
