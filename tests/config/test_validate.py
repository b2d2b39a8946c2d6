"""What validation makes of a config: the same run or another one, and which model it is about."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import open_dict

from harness import clean_environment, composed, validated
from policyprune.config.application import checked
from policyprune.config.sweep import jobs, opened, points
from policyprune.config.validate import fingerprint, run_label, validate

TABLES = ("bert_base", "roberta_base", "distilbert")


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "budget.keep=0.7",
        "optimizer.levels=33",
        "model.revision=abc",
        "evaluation.lengths=[64]",
        "export=none",
    ],
)
def test_fingerprint_changes_with_what_changes_the_result(override: str) -> None:
    rest = ["evaluation.fresh_process=false"]
    assert fingerprint(validated(override, *rest)) != fingerprint(validated(*rest))


@pytest.mark.parametrize("override", ["force=true", "tracker=wandb", "hydra.run.dir=elsewhere"])
def test_fingerprint_ignores_what_does_not(override: str) -> None:
    assert fingerprint(validated(override)) == fingerprint(validated())
    assert run_label(composed(override)) == run_label(composed())


def test_fingerprint_is_the_same_in_another_process() -> None:
    script = (
        "from harness import composed, validated\n"
        "from policyprune.config.validate import fingerprint, run_label\n"
        "print(fingerprint(validated('seed=3')), run_label(composed('seed=3')))"
    )
    path = os.pathsep.join(filter(None, sys.path))
    variables = clean_environment(PYTHONPATH=path, PYTHONHASHSEED="7")
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [fingerprint(validated("seed=3")), run_label(composed("seed=3"))]


def test_run_label_says_the_axes_and_tells_apart_what_it_does_not_say() -> None:
    label = run_label(composed("budget.keep=0.75", "seed=4"))
    assert label.startswith("smollm2_135m-wikipedia-head_channel-rate0.75-ours-s4-")
    with_ppo = run_label(composed("budget.keep=0.75", "seed=4", "optimizer=ppo"))
    assert with_ppo.startswith("smollm2_135m-wikipedia-head_channel-rate0.75-ppo-s4-")
    assert label != run_label(composed("budget.keep=0.75", "seed=4", "optimizer.levels=33"))


def test_run_label_names_the_method() -> None:
    config = composed("method=flap", "budget.keep=0.75")
    assert run_label(config).startswith("smollm2_135m-wikipedia-head_channel-rate0.75-flap-s0-")
    config.method = "K = 2"
    assert "-K_2-s0-" in run_label(config)


def test_run_label_is_one_folder_name() -> None:
    assert "/" not in run_label(composed("model.name=owner/model"))


@pytest.mark.parametrize("model", TABLES)
def test_the_table_names_the_model_of_a_task(model: str) -> None:
    raw = composed(f"model={model}", "task=glue/sst2")
    assert validate(raw).model.source == raw.model.fine_tuned["glue/sst2"]


@pytest.mark.parametrize("model", TABLES)
def test_a_task_that_is_not_in_the_table_takes_the_pretrained_model(model: str) -> None:
    raw = composed(f"model={model}", "task=glue/sst2")
    with open_dict(raw):
        del raw.model.fine_tuned["glue/sst2"]
    assert validate(raw).model.source.split("/")[-1] in ("bert-base-uncased", "roberta-base", "distilbert-base-uncased")


@pytest.mark.parametrize("model", TABLES)
def test_what_a_person_states_wins_over_the_table(model: str) -> None:
    config = validated(f"model={model}", "task=glue/sst2", "model.source=/mine")
    assert config.model.source == "/mine"
    assert not config.model.fine_tuned  # nobody downstream can look there again


def test_the_order_of_the_words_does_not_matter() -> None:
    assert validated("model.source=/mine", "task=glue/sst2", "model=bert_base").model.source == "/mine"


def test_a_row_of_the_table_that_is_not_used_makes_no_other_run() -> None:
    words = ("model=bert_base", "task=glue/sst2")
    raw = composed(*words)
    raw.model.fine_tuned["glue/rte"] = "another"  # a later version of the table
    assert fingerprint(validate(raw)) == fingerprint(validated(*words))
    assert fingerprint(validated(*words)) != fingerprint(validated(*words, "model.source=/mine"))


def test_a_plan_is_laid_on_the_model_that_is_stated() -> None:
    words = ["plan=plan.json", "model=bert_base", "model.source=/mine"]
    assert checked("apply", "apply", words).model.source == "/mine"


def test_each_job_of_a_sweep_takes_what_is_stated(tmp_path: Path) -> None:
    stated = f"model.source={tmp_path}"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").touch()
    with opened("offline/paper/gpruner_glue", ["model=bert_base,roberta_base", stated]) as sweep:
        sources = {
            (job.config.model.source, *(job.config.model.fine_tuned or {})) for job in jobs(sweep, points(sweep))
        }
    assert sources == {(str(tmp_path),)}
