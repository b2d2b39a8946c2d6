"""A table of wrong command lines: each is one line on stderr, exit code 2, and nothing is left."""

import dataclasses
import json
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import settled

Refusal = Callable[..., str]
SECONDS = 10

FLAGS = [
    (["--nope"], "--nope"),
    (["--nope=1"], "--nope"),
    (["-x"], "-x"),
    (["budget.keep=2", "-m"], "budget.keep"),
    (["seed=1", "-m", "budget.keep=2"], "budget.keep"),
    (["-m", "seed=-1,1"], "seed: -1 is out of range, it must be at least 0 (in the job seed=-1)"),
    (["-m", "budget.kep=1,2"], "budget.kep"),
    (["-m", "optimizer=nope,one_shot"], "optimizer: 'nope'"),
    (["-m", "hydra.sweep.dir=/dev/null/x"], "hydra.sweep.dir"),
    (["-m", "hydra.sweep.dir="], "hydra.sweep.dir: empty"),
    (["-m", "hydra.sweep.subdir="], "hydra.sweep.subdir"),
    (["-m", "hydra/launcher=nope"], "nope"),
    (["-m", "hydra/sweeper=nope"], "nope"),
    (["hydra.mode=MULTIRUN", "seed=-1,2"], "seed: -1"),
    (["hydra.mode=NOPE"], "hydra.mode"),
    (["--multirun", "--nope"], "--nope"),
    (["--multirun=1"], "multirun"),
    (["--multirun", "--cfg", "job"], "give one of them"),
    (["--run", "--multirun"], "give one of them"),
    (["-p"], "-p"),
    (["-p", "task"], "--package: goes with --cfg"),
    (["--cfg"], "--cfg"),
    (["--cfg", "nope"], "'nope'"),
    (["--cfg", "job", "-p", "nope"], "--package: 'nope'"),
    (["--cfg", "job", "budget.kep=2"], "budget.kep"),
    (["--info", "nope"], "'nope'"),
    (["--resolve"], "--resolve: goes with --cfg"),
    (["--config-name", "evaluate"], "--config-name: no flag of policyprune"),
    (["--config-path", "/nowhere"], "--config-path"),
    (["--config-dir", "."], "--config-dir"),
    (["--experimental-rerun", "job.pickle"], "--experimental-rerun"),
    (["-sc"], "subcommand"),
    (["-sc", "install=nope"], "'nope'"),
    (["--", "-x"], "-x"),
    (["run", "--nope"], "--nope"),
    (["run", "sweep"], "sweep"),
    (["seed=1", "finetune"], "finetune"),
]

OVERRIDES = [
    ([""], ""),
    (["="], "names no key"),
    (["=1"], "=1: names no key"),
    (["\n"], ""),
    (["nope\n"], "nope"),
    (["\udcff=1"], r"\udcff"),
    (["se\ned=1"], "se ed=1"),
    (["seed.=1"], "seed.="),
    (["seed..x=1"], "seed..x"),
    (["seed.x=1"], "seed.x"),
    (["nope=1"], "nope: unknown key"),
    (["++nope=1"], "nope: unknown key"),
    (["nope/nope=1"], "nope/nope"),
    (["nope.nope.nope=1"], "nope"),
    (["model.source.x=1"], "model.source"),
    (["model@nope=gpt2"], "model"),
    (["@nope=gpt2"], "@nope"),
    (["+model=gpt2"], "model"),
    (["+model@other=gpt2"], "other"),
    (["~model"], "model: no value given"),
    (["~model=nope"], "nope"),
    (["~seed"], "seed"),
    (["~nope"], "nope"),
    (["~hydra"], "hydra"),
    (["+seed=1"], "seed"),
    (["+hydra.nope=1"], "hydra.nope: unknown key"),
    (["hydra.nope=1"], "hydra.nope"),
    (["hydra=null"], ""),
    (["hydra.job.chdir=maybe"], "hydra.job.chdir"),
    (["hydra/job_logging=nope"], "nope"),
    (["model=null"], "model: null is not one of"),
    (["model={}"], "model: {} is not one of"),
    (["model=[gpt2]"], "model: ['gpt2'] is not one of"),
    (["task=[wikitext2,c4]"], "task: ['wikitext2', 'c4'] is not one of"),
    (["export=[hf,nope]"], "export: 'nope'"),
    (["export={hf: true}"], "export: {'hf': True}"),
    (["optimizer="], "optimizer: '' is not one of"),
    (["method=null"], "method: null is not one of"),
    (["method.x=1"], "method.x"),
    (["optimizer='one_shot"], "optimizer"),
    (['model.source="unclosed'], "model.source"),
    (["model.source=[unclosed"], "model.source"),
    (["model.source={unclosed"], "model.source"),
    (["model.source=(unclosed"], "model.source"),
    (["model.source=/x/epoch=3"], "quote it: 'model.source=\"/x/epoch=3\"'"),
    (['model.source="/x/epoch=3"'], "model.source: '/x/epoch=3' does not exist"),
    (["model.source=/x/a,b"], "model.source"),
    (["model.source=/x/a(1)"], "model.source"),
    (["model.source='/x/a\nb\u2028\x1b[31m'"], r"'/x/a\nb\u2028\x1b[31m' does not exist"),
    (["model.source='/x/\udcff'"], r"\udcff"),
    (["model.source='/x\x00y'"], r"\x00"),
    (["model.source=/x/" + 300 * "y"], "model.source"),
    (["model.source=${nope}"], "model.source: Interpolation key 'nope' not found"),
    (["model.source=${nope:x}"], "model.source"),
    (["model.source=${oc.env:POLICYPRUNE_UNSET}"], "POLICYPRUNE_UNSET"),
    (["model.source=${"], "model.source"),
    (["model.source=${model.source}"], "model.source"),
    (["model.name=${run_label:}"], ""),
    (["seed=${budget.keep}"], "seed"),
    (["budget.keep=${model}"], "budget.keep"),
    (["budget.keep=0.8,0.9"], "budget.keep"),
    (["budget.keep=range(1,3)"], "budget.keep"),
    (["budget.keep=nope(1)"], "budget.keep"),
    (["evaluation.lengths=[[1]]"], "evaluation.lengths: [1] is not a number"),
    (["evaluation.lengths=[null,1]"], "evaluation.lengths"),
    (["evaluation.latency=3"], "evaluation.latency"),
    (["evaluation.latency=null"], "evaluation.latency"),
    (["safety=null"], "safety"),
    (["granularity.units=[attention,attention]"], "granularity.units: names 'attention' twice"),
    (["evaluation.one_shot=[global,global]"], "evaluation.one_shot: names 'global' twice"),
    (["optimizer=given"], "optimizer.folder"),
    (["optimizer=given", "optimizer.folder=/nowhere"], "optimizer.folder"),
    (["task=text"], "task.source, task.files"),
    (["task=text", "task.files=[/nowhere]"], "task.files"),
    (["export.max_shard_size=abc"], "export.max_shard_size: 'abc' is no size"),
    (["export.max_shard_size=0"], "export.max_shard_size: '0' is no size"),
    (["export.max_shard_size=5"], "export.max_shard_size: '5' is no size"),
    (["export.max_shard_size=0GB"], "export.max_shard_size: '0GB' is no size"),
    (["export.max_shard_size=-5GB"], "export.max_shard_size: '-5GB' is no size"),
    (["export.max_shard_size=5XB"], "export.max_shard_size: '5XB' is no size"),
    (["export.max_shard_size=nanGB"], "export.max_shard_size: 'nanGB' is no size"),
]

PLACES = [
    (["hydra.run.dir="], "hydra.run.dir: empty"),
    (["hydra.run.dir=''"], "hydra.run.dir: empty"),
    (["hydra.run.dir=null"], "hydra.run.dir"),
    (["hydra.run.dir=' '"], "hydra.run.dir: empty"),
    (["hydra.run.dir=/dev/null"], "hydra.run.dir: '/dev/null' is a file"),
    (["hydra.run.dir=/dev/null/below"], "hydra.run.dir: '/dev/null/below'"),
    (["hydra.run.dir={file}/below"], "is a file"),
    (["hydra.run.dir=/proc/nope/run"], "/proc/nope"),
    (["hydra.run.dir=" + 300 * "x"], "hydra.run.dir"),
    (["hydra.run.dir=" + 30 * (200 * "x" + "/")], "hydra.run.dir"),
    (["hydra.run.dir='a\x00b'"], "hydra.run.dir"),
    (["hydra.run.dir=${nope}"], "nope"),
    (["hydra.job.chdir=true", "model.source=./nowhere"], "model.source"),
    (["finetune", "hydra.run.dir="], "hydra.run.dir: empty"),
    (["finetune", "-m", "training.epochs=0,-1"], "training.epochs: 0.0"),
    (["evaluate", "a/b", "hydra.run.dir="], "hydra.run.dir: empty"),
    (["sweep", "smoke", "hydra.sweep.dir=", "--dry-run"], "hydra.sweep.dir: empty"),
    (["sweep", "smoke", "hydra.sweep.dir={file}/below", "--dry-run"], "hydra.sweep.dir"),
    (["report", "{folder}", "--output", "{file}"], "--output"),
    (["report", "{folder}", "--output", "{file}/below"], "--output"),
    (["report", "{folder}", "--output", "/proc/nope/x"], "no record.json"),
    (["report", "{folder}", "--output", ""], "--output"),
    (["report", "{folder}", "--output", 300 * "x"], "--output"),
    (["report", "{folder}"], "no record.json"),
    (["report", "{file}"], "is no folder"),
    (["export", "a/b", "format=hf", "output="], "output: empty"),
    (["export", "a/b", "format=hf", "output={file}"], "output"),
    (["export", "a/b", "format=hf", "output={file}/below"], "output"),
    (["export", "a/b", "format=gguf", "output={folder}"], "is a folder, name a file"),
    (["export", "a/b", "format=gguf", "output=/dev/null"], "is a device, name a file"),
    (["export", "a/b", "format=gguf", "output={file}/below.gguf"], "output"),
    (["apply", "{plan}", "output={file}/below"], "output"),
]

VERBS = [
    (["nope"], "the verbs are"),
    (["sweep", "--nope"], "--nope"),
    (["sweep", "smoke", "--dry-run", "--nope"], "--nope is no flag"),
    (["sweep", "smoke", "-m"], "-m"),
    (["sweep", "nope"], "'nope' is not one of"),
    (["sweep", ""], "'' is not one of"),
    (["sweep", "../smoke"], "'../smoke'"),
    (["sweep", "smoke", "smoke"], "smoke"),
    (["sweep", "smoke", "budget.kep=1"], "budget.kep"),
    (["sweep", "smoke", "budget.keep=2,3"], "budget.keep"),
    (["sweep", "smoke", "optimizer=nope"], "nope"),
    (["sweep", "smoke", "hydra.mode=RUN"], "hydra.mode"),
    (["sweep", "smoke", "hydra.sweep.subdir=x"], "hydra.sweep.subdir"),
    (["sweep", "smoke", "hydra/launcher=nope"], "nope"),
    (["sweep", "smoke", "hydra.nope=1"], "hydra.nope"),
    (["finetune", "finetune"], "finetune"),
    (["finetune", "--nope"], "--nope"),
    (["finetune", "training.epochs=0"], "training.epochs"),
    (["finetune", "training.epochs=nan"], "training.epochs"),
    (["finetune", "training=null"], "training"),
    (["finetune", "optimizer=one_shot"], "optimizer"),
    (["finetune", "budget.keep=0.5"], "budget.keep"),
    (["evaluate"], "evaluate: name a run folder"),
    (["evaluate", "--nope"], "evaluate: name a run folder"),
    (["evaluate", "-m", "a/b"], "evaluate: name a run folder"),
    (["evaluate", ""], ""),
    (["evaluate", "/nowhere"], "'/nowhere' does not exist"),
    (["evaluate", "nowhere"], "source: 'nowhere'"),
    (["evaluate", "{file}"], "holds neither"),
    (["evaluate", "{folder}"], "holds neither"),
    (["evaluate", "a\nb"], r"'a\nb'"),
    (["evaluate", "\udcff"], r"\udcff"),
    (["evaluate", "pkg://nope/x"], "'nope'"),
    (["evaluate", "/x/epoch=3"], "evaluate: name a run folder"),
    (["evaluate", "a/b", "c/d"], "c/d"),
    (["evaluate", "a/b", "--nope"], "--nope"),
    (["evaluate", "a/b", "nope=1"], "nope: unknown key"),
    (["evaluate", "a/b", "task=nope"], "task: 'nope'"),
    (["evaluate", "a/b", "state=x"], "state=x: not to be set"),
    (["evaluate", "a/b", "sequence_length=0"], "sequence_length"),
    (["evaluate", "a/b", "evaluation.one_shot=[global]"], "evaluation.one_shot"),
    (["export"], "export: name a run folder"),
    (["export", "a/b"], "format: no value given"),
    (["export", "a/b", "format=zip"], "format: 'zip'"),
    (["export", "a/b", "format=hf,onnx"], "format"),
    (["export", "a/b", "format=hf", "-m"], "-m: no flag of policyprune export"),
    (["export", "a/b", "format=hf", "--cfg", "job"], "--cfg: no flag of policyprune export"),
    (["export", "a/b", "format=hf", "run=x"], "run=x: not to be set"),
    (["export", "a/b", "format=hf", "hydra.run.dir=x"], "hydra.run.dir"),
    (["export", "a/b", "format=hf", "dtype=q8_0"], "dtype"),
    (["export", "a/b", "format=hf", "max_shard_size=abc"], "max_shard_size"),
    (["export", "a/b", "format=plan"], "format: plan"),
    (["apply"], "apply: name a plan.json first"),
    (["apply", "--nope"], "apply: name a plan.json first"),
    (["apply", ""], "plan: ''"),
    (["apply", "/nowhere"], "plan: '/nowhere' cannot be read"),
    (["apply", "{folder}"], "cannot be read"),
    (["apply", "{file}"], "is no plan of policyprune"),
    (["apply", "{plan}", "plan=x"], "plan=x: not to be set"),
    (["apply", "{plan}", "max_shard_size=-1GB"], "max_shard_size"),
    (["apply", "{plan}", "model=nope"], "model: 'nope'"),
    (["doctor", "--nope"], "doctor: give"),
    (["doctor", "--families", "model=gpt2"], "doctor: give"),
    (["doctor", "-m"], "doctor: give"),
    (["doctor", "nope"], "nope"),
    (["doctor", "model=nope"], "model: 'nope'"),
    (["doctor", "model=gpt2,opt_125m"], "model"),
    (["doctor", "model.source="], "model.source: empty"),
    (["doctor", "model.source=/nowhere"], "model.source"),
    (["doctor", "budget.keep=2"], "budget.keep"),
    (["doctor", "hydra.run.dir="], "hydra.run.dir"),
    (["report"], "report: "),
    (["report", "--nope", "."], "--nope"),
    (["report", "."], "no record.json below '.'"),
    (["report", "/nowhere"], "'/nowhere' is no folder"),
    (["report", ".", "--table"], "--table"),
    (["report", ".", "--table", "nope"], "--table 'nope'"),
    (["report", "a\nb"], r"'a\nb'"),
]


@pytest.fixture
def named(tmp_path: Path) -> dict[str, str]:
    """Files and folders that command lines refer to."""
    file, folder, plan = tmp_path / "file", tmp_path / "folder", tmp_path / "plan.json"
    file.write_text("text")
    folder.mkdir()
    plan.write_text(json.dumps({"base": {"source": "a/b", "revision": None, "dtype": "float32"}}))
    return {"{file}": str(file), "{folder}": str(folder), "{plan}": str(plan)}


def replaced(arguments: list[str], named: dict[str, str]) -> list[str]:
    """The arguments with the names of the files in them."""
    for word, path in named.items():
        arguments = [argument.replace(word, path) for argument in arguments]
    return arguments


@pytest.mark.parametrize(("arguments", "words"), [*FLAGS, *OVERRIDES, *PLACES, *VERBS])
def test_a_wrong_command_line(refusal: Refusal, named: dict[str, str], arguments: list[str], words: str) -> None:
    began = time.monotonic()
    line = refusal(*replaced(arguments, named))
    assert words in line
    assert line.isprintable()
    assert time.monotonic() - began < SECONDS


def test_the_table_is_long_enough() -> None:
    rows = [tuple(arguments) for arguments, _ in [*FLAGS, *OVERRIDES, *PLACES, *VERBS]]
    assert len(set(rows)) == len(rows) >= 200
    first = {arguments[0] for arguments in rows if arguments}
    assert {"run", "sweep", "finetune", "evaluate", "export", "apply", "doctor", "report"} <= first


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a typed config, each with its annotation."""
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", hints[field.name]


WRONG = {
    int: ["abc", "1.5", "[1]", "{a: 1}", "''", "null"],
    float: ["abc", "[1]", "{a: 1}", "''", "null", "true"],
    bool: ["abc", "[true]", "{a: true}", "null"],
    str: ["[a]", "{a: b}", "null"],
    list: ["abc", "3", "{a: 1}", "null", "[{a: 1}]", "[[a]]"],
    dict: ["abc", "3", "[1]", "null", "{a: [1]}"],
}


def wrong(annotation: Any) -> list[str]:
    """Values of another type than the annotation."""
    optional = isinstance(annotation, types.UnionType)
    kind = next(own for own in get_args(annotation) if own is not type(None)) if optional else annotation
    return [value for value in WRONG[get_origin(kind) or kind] if not (optional and value == "null")]


GIVEN = ["optimizer=ppo", "tuning=reconstruct", "budget=latency", "tracker=wandb"]
KEYS = dict(leaves(settled(*GIVEN)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([(key, value) for key, hint in KEYS.items() for value in wrong(hint)]))
def test_no_key_takes_a_value_of_another_type(refusal: Refusal, pair: tuple[str, str]) -> None:
    key, value = pair
    line = refusal(*GIVEN, f"{key}={value}")
    assert key in line


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(KEYS)), st.sampled_from("~+"), st.text(st.characters(exclude_characters="\0"), max_size=9)
)
def test_no_unknown_key_is_taken(refusal: Refusal, key: str, sign: str, text: str) -> None:
    assert refusal(f"{sign}{key}_nope={text}")
