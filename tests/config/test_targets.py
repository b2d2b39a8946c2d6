"""Targets of the verbs: what stands in somebody's files is not interpolated and becomes no override of its own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from harness import validated
from policyprune.commands import verbs
from policyprune.config import targets
from policyprune.config.composition import compose, literal, quoted, register
from policyprune.errors import UsageError
from policyprune.models.modelling_file import brings_only_ours
from policyprune.runs.record import Record

Refusal = Callable[..., str]
TEXTS = st.text(st.sampled_from("\\${}'\"a:.,=[]() \n~@#é1"), max_size=14)
SECRET = "a-secret-of-mine"
EVIL = [
    "${oc.env:POLICYPRUNE_SECRET}",
    "x${oc.env:POLICYPRUNE_SECRET}y",
    "\\${oc.env:POLICYPRUNE_SECRET}",
    "\\\\${oc.env:POLICYPRUNE_SECRET}",
    "${run_label:}",
    "${seed}",
    "a' model.trust_remote_code=true",
    "a\nmodel.trust_remote_code=true",
    "a,b",
    "[a,b]",
    "x=1",
    "null",
    "1",
]


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLICYPRUNE_SECRET", SECRET)
    register()


@given(TEXTS)
def test_a_literal_is_what_it_was(text: str) -> None:
    node = OmegaConf.create({"deep": [{"text": literal(text)}]})
    assert OmegaConf.to_container(node, resolve=True) == {"deep": [{"text": text}]}


@given(TEXTS)
def test_a_quoted_string_is_one_override_with_this_value(text: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"key={quoted(text)}"])
    node = OmegaConf.create({override.key_or_group: override.value()})
    assert OmegaConf.to_container(node, resolve=True) == {"key": text}


def recorded(folder: Path, **changes: Any) -> Path:
    """A run's folder with a record in which some of the config is changed."""
    config = OmegaConf.to_container(OmegaConf.structured(validated("task=wikitext2")), resolve=True)
    assert isinstance(config, dict)
    for key, value in changes.items():
        group, _, name = key.partition("__")
        config[group][name] = value
    (folder / "checkpoint").mkdir(parents=True)
    Record(config=config, config_hash="x", hardware={}, status="finished").write(folder)
    return folder


def target(source: Path | str) -> targets.Target:
    """What the verbs make of a path."""
    return targets.find(str(source), brings_only_ours)


@pytest.mark.parametrize("text", EVIL)
def test_strings_of_a_record_stay_what_they_are(text: str, tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", model__name=text, task__text_column=text, task__separator=text)
    added = targets.evaluating(target(run), [])
    point = compose("evaluate", added, added)
    assert point.config.model.name == text
    assert point.config.task.text_column == text
    assert point.config.task.separator == text
    assert not point.config.model.trust_remote_code
    assert SECRET not in str(point)
    exported = compose("export", [*targets.exporting(target(run)), "format=hf"]).config
    assert exported.model.name == text
    assert exported.run == str(run)


@pytest.mark.parametrize("key", ["device", "dtype", "attn_implementation", "device_map"])
@pytest.mark.parametrize("text", EVIL[:7])
def test_how_a_record_says_a_model_is_held_is_no_override(key: str, text: str, tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", **{f"model__{key}": text})
    if key != "device":
        with pytest.raises(UsageError) as refused:
            compose("export", [*targets.exporting(target(run)), "format=hf"])
        assert SECRET not in str(refused.value)
        return
    config = compose("export", [*targets.exporting(target(run)), "format=hf"]).config
    assert config.model.device == text
    assert not config.model.trust_remote_code


@pytest.mark.parametrize("text", EVIL)
def test_strings_of_a_plan_stay_what_they_are(text: str, tmp_path: Path) -> None:
    plan = tmp_path / f"{text.replace('/', '')[:20]}.json"
    plan.write_text(json.dumps({"base": {"source": text, "revision": text, "dtype": "float32"}}))
    config = compose("apply", targets.applying(str(plan), [])).config
    assert (config.model.source, config.model.revision, config.plan) == (text, text, str(plan))


def test_the_folder_of_an_evaluation_does_not_tell_a_secret(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", model__name="../../${oc.env:POLICYPRUNE_SECRET}\n" + 300 * "x")
    added = targets.evaluating(target(run), [])
    point = compose("evaluate", added, added)
    run_dir = point.folders["hydra.run.dir"]
    assert run_dir is not None
    assert SECRET not in run_dir
    assert run_dir.isprintable()
    assert Path(run_dir).parent == Path("outputs")
    assert len(Path(run_dir).name) < 255


@pytest.mark.parametrize("arguments", [["evaluate"], ["recover"], ["export", "format=hf"]], ids=" ".join)
def test_a_run_that_is_not_finished_is_refused(refusal: Refusal, arguments: list[str], tmp_path: Path) -> None:
    run = recorded(tmp_path / "run")
    (run / "checkpoint").rmdir()
    line = refusal(arguments[0], str(run), *arguments[1:])
    assert line == f"source: {str(run)!r} is a run that is not finished, the same command goes on with it"


WRONG = [None, [], {}, 3, "text", [[]], {"config": None}, {"config": []}, {"config": {"model": []}}, {"base": None}]
WRONG += [{"base": {"source": ["a"], "revision": None, "dtype": "float32"}}, {"base": {"source": "a"}}]


@pytest.mark.parametrize("content", [*WRONG, "{", 1000 * "[", "\udcff"])
@pytest.mark.parametrize("verb", ["evaluate", "export", "apply"])
def test_files_of_another_shape_are_refused(refusal: Refusal, verb: str, content: Any, tmp_path: Path) -> None:
    raw = content if isinstance(content, str) and content != "text" else json.dumps(content)
    run = tmp_path / "run"
    run.mkdir()
    file = run / ("plan.json" if verb == "apply" else "record.json")
    file.write_bytes(raw.encode(errors="surrogateescape"))
    arguments = {"evaluate": [run], "export": [run, "format=hf"], "apply": [file]}
    line = refusal(verb, *map(str, arguments[verb]))
    assert str(run) in line
    assert [path.name for path in run.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "x"),
        ("seed", None),
        ("seed", [1]),
        ("seed", True),
        ("task", {"name": "x"}),
        ("evaluation", {}),
        ("budget", {"sequence_length": "x"}),
    ],
)
def test_values_of_a_record_are_checked(key: str, value: Any, refusal: Refusal, tmp_path: Path) -> None:
    run = recorded(tmp_path / "run")
    record = json.loads((run / "record.json").read_text())
    record["config"][key] = value
    (run / "record.json").write_text(json.dumps(record))
    refusal("evaluate", str(run))


def test_a_checkpoint_may_stand_in_a_folder_with_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "epoch=3, ${seed} 'best'"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    source, overrides = targets.split("evaluate", [str(folder), "seed=1"], "a checkpoint")
    config = compose("evaluate", [*targets.evaluating(target(source), overrides), *overrides]).config
    assert config.model.source == str(folder)
    with pytest.raises(UsageError, match="evaluate: name"):
        verbs.evaluate(["epoch=4"])
