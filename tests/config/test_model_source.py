"""Which model a config names: the option's, the one of its table for the task, or the one that a person states."""

from pathlib import Path

import pytest
from omegaconf import open_dict

from harness import composed, validated
from policyprune.config.application import checked
from policyprune.config.sweep import jobs, opened, points
from policyprune.config.validate import fingerprint, validate

TABLES = ("bert_base", "roberta_base", "distilbert")


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
