"""The origin of labelled data is decided when a config is checked, and is part of what names a run."""

import json
from pathlib import Path

import pytest

from harness import composed, validated
from policyprune.config.sweep import jobs, opened, points
from policyprune.config.validate import fingerprint, run_label
from policyprune.errors import UsageError
from policyprune.storage import hub

SST2 = ("model=bert_base", "task=glue/sst2", "evaluation.fresh_process=false")
HERE = [
    "++task.offline_files.train=pkg://policyprune/cli.py",
    "++task.offline_files.validation=pkg://policyprune/cli.py",
]


def answer(monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    monkeypatch.setattr(hub, "trouble", lambda source: trouble)
    monkeypatch.setattr(hub, "cached", lambda source: False)


def test_other_data_are_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {}
    for trouble in ("", hub.NO_NETWORK):
        answer(monkeypatch, trouble)
        config = validated(*SST2)
        names[config.task.origin] = (fingerprint(config), run_label(composed(*SST2)))
    assert set(names) == {"hub", "embedded"}
    assert names["hub"][0] != names["embedded"][0]
    assert names["hub"][1] != names["embedded"][1], "the folder's name tells them apart too"


@pytest.mark.parametrize("origin", ["hub", "embedded"])
def test_what_was_decided_is_the_same_run_as_what_is_stated(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    answer(monkeypatch, "" if origin == "hub" else hub.NO_NETWORK)
    stated = (*SST2, f"task.origin={origin}")
    assert fingerprint(validated(*SST2)) == fingerprint(validated(*stated))
    assert run_label(composed(*SST2)) == run_label(composed(*stated))


def test_a_hub_that_is_not_well_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, "status 503")
    with pytest.raises(UsageError, match=r"^task\.origin: .*status 503.*try again"):
        validated(*SST2)


def test_nothing_is_asked_where_nothing_is_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "trouble", None)
    assert validated("model=bert_base", "task=glue/mnli", "evaluation.fresh_process=false").task.origin == "hub"
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"sentence": "a", "label": 0}]), encoding="utf-8")
    files = [f"++task.data_files.{split}={path}" for split in ("train", "validation")]
    assert validated(*SST2, *files).task.origin == "auto"
    assert validated(*SST2, "task.origin=embedded").task.origin == "embedded"


def test_embedded_is_refused_where_there_are_no_such_files() -> None:
    with pytest.raises(UsageError, match=r"^task\.origin: embedded has no 'train' split for task=glue/rte"):
        validated("model=bert_base", "task=glue/rte", "task.origin=embedded", "evaluation.fresh_process=false")


def test_the_origin_of_questions_is_decided_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    origins = []
    for trouble in ("", hub.NO_NETWORK):
        answer(monkeypatch, trouble)
        config = validated("evaluation=zero_shot")
        origins.append((config.evaluation.zero_shot.source, fingerprint(config)))
        assert validated().evaluation.zero_shot.source == "auto", "no questions, no origin"
    assert [source for source, _ in origins] == ["hub", "embedded"]
    assert origins[0][1] != origins[1][1]


def test_a_sweep_decides_once_for_all_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, hub.NO_NETWORK)
    axes = ["task=glue/sst2", "model=bert_base", "method=kwon", "budget.keep=0.9,0.8"]
    with opened("paper/gpruner_glue", [*axes, *HERE]) as sweep:
        wanted = jobs(sweep, points(sweep))
    assert all(job.config.task.origin == "embedded" for job in wanted)
    assert all("task.origin=embedded" in job.decided for job in wanted)
