"""The verb finetune on a tiny encoder: what it writes, that it learns, that it is not repeated, and that it goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from encoders import reviews, save_encoder
from forking import forked
from harness import console, foreign_lines, validated
from policyprune.commands import finetune as finetuning
from policyprune.config.composition import register
from policyprune.config.registry import conf_dir
from policyprune.config.validate import validate
from policyprune.errors import UsageError
from policyprune.runs.folder import finished_before
from policyprune.runs.record import ResultRow, read_record

TRAINING = ["training.batch_size=8", "training.learning_rate=5e-3", "task.max_length=40"]
Arguments = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> list[str]:
    """A tiny task with named labels, and a model for it."""
    folder = tmp_path_factory.mktemp("finetune")
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    for name, count, seed in (("train", 96, 1), ("validation", 40, 2)):
        Dataset.from_list(reviews(count, seed), features=features).save_to_disk(folder / name)
    source = save_encoder(folder / "tiny-bert", tiny_tokenizer, seed=4, spread=0.0)
    files = [f"++task.data_files.{split}={folder / split}" for split in ("train", "validation")]
    return [f"model.source={source}", "model.name=tiny", "task=glue/sst2", *files, *TRAINING]


def composed(*overrides: str) -> Any:
    register()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return validate(hydra.compose("finetune", list(overrides)))


def values(rows: list[ResultRow]) -> dict[str, float]:
    return {row.metric: float(row.value) for row in rows if row.value is not None}


def test_finetune_through_the_console_learns_and_is_not_repeated(arguments: list[str], tmp_path: Path) -> None:
    command = ["finetune", *arguments, "training.epochs=6", "hydra.run.dir=here"]
    done = console(*command, cwd=tmp_path, environment={"HF_DATASETS_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr
    assert foreign_lines(done.stderr) == []
    record = read_record(tmp_path / "here")
    assert record is not None
    assert (record.status, record.error) == ("finished", None)
    assert [stage["name"] for stage in record.stages] == ["load", "training", "export", "evaluation"]
    assert record.protocol["calibration"]["count"] == 96
    assert values(record.results)["accuracy"] > 0.9
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "here" / "checkpoint").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "here" / "checkpoint")
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model.config.label2id == {"negative": 0, "positive": 1}
    test = reviews(40, seed=2)
    encoded = tokenizer([row["sentence"] for row in test], padding=True, return_tensors="pt", max_length=40)
    with torch.no_grad():
        right = (model(**encoded).logits.argmax(-1) == torch.tensor([row["label"] for row in test])).float().mean()
    assert float(right) == pytest.approx(values(record.results)["accuracy"], abs=1e-6)
    assert "accuracy, validation" in done.stdout

    before = (tmp_path / "here" / "checkpoint" / "model.safetensors").stat().st_mtime_ns
    again = forked(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "here" / "checkpoint" / "model.safetensors").stat().st_mtime_ns == before
    assert read_record(tmp_path / "here") == record


class StoppedError(Exception):
    """What ends a training in the middle."""


def trained(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[int]:
    """Count the optimisation steps from here on; the one numbered `stop_at` is where the training is interrupted."""
    steps: list[int] = []
    original = Trainer.training_step

    def counting(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        if stop_at is not None and self.state.global_step + 1 == stop_at:
            raise StoppedError
        steps.append(self.state.global_step + 1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", counting)
    return steps


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForSequenceClassification.from_pretrained(folder / "checkpoint").state_dict())


def test_an_interrupted_training_goes_on_from_its_last_epoch(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(*arguments, "training.epochs=3")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finetuning.run(config, whole)
    with monkeypatch.context() as patch:
        trained(patch, stop_at=30)  # 12 steps an epoch
        with pytest.raises(StoppedError):
            finetuning.run(config, broken)
    record = read_record(broken)
    assert record is not None
    assert (record.status, record.error) == ("failed", "StoppedError:")
    assert not (broken / "checkpoint").exists()
    with monkeypatch.context() as patch:
        steps = trained(patch)
        record = finetuning.run(config, broken)
    assert steps == list(range(25, 37))
    assert record.status == "finished"
    expected = weights(whole)
    for name, tensor in weights(broken).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-3, rtol=1e-2, msg=name)


def test_a_finished_training_is_not_repeated_unless_forced(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(*arguments, "training.epochs=1")
    steps = trained(monkeypatch)
    first = finetuning.run(config, tmp_path / "here")
    assert len(steps) == 12
    assert finetuning.run(config, tmp_path / "here") == first
    assert len(steps) == 12
    forced = composed(*arguments, "training.epochs=1", "force=true")
    assert finished_before(forced, tmp_path / "here") is None
    finetuning.run(forced, tmp_path / "here")
    assert len(steps) == 24


def test_weights_are_trained_in_float32_on_every_device(arguments: list[str]) -> None:
    assert composed(*arguments).model.dtype == "float32"


def test_regression_and_plain_labels(tmp_path: Path, arguments: list[str]) -> None:
    rows = [{**row, "label": float(row["label"])} for row in reviews(48, seed=3)]
    folders = {}
    for name, part in (("train", rows[:40]), ("validation", rows[40:])):
        Dataset.from_list(part).save_to_disk(tmp_path / name)
        folders[name] = str(tmp_path / name)
    changes = ["task.classes=1", "task.metrics=[pearson]", "training.epochs=1"]
    config = composed(*arguments, *changes)
    config.task.data_files = folders
    record = finetuning.run(config, tmp_path / "run")
    assert {"pearson", "squared_error"} <= set(values(record.results))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "checkpoint")
    assert model.config.num_labels == 1


def test_it_starts_from_the_pretrained_model() -> None:
    """Not from the checkpoint that others fine-tuned for this task, which is what a run prunes."""
    words = ("model=bert_base", "task=glue/sst2")
    assert validated(*words).model.source != "google-bert/bert-base-uncased"
    assert composed(*words).model.source == "google-bert/bert-base-uncased"


def test_a_language_modeling_task_is_refused(arguments: list[str], tmp_path: Path) -> None:
    config = composed(*arguments)
    config.task = validated().task
    with pytest.raises(UsageError, match="cannot be fine-tuned on"):
        finetuning.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_fine_tuned_checkpoint_is_what_a_run_prunes(arguments: list[str], tmp_path: Path) -> None:
    """Under an option that names somebody else's checkpoint for the task, the one that was stated is loaded."""
    from policyprune.models.loading import load

    finetuning.run(composed(*arguments, "training.epochs=1"), tmp_path / "here")
    assert not (tmp_path / "here" / "trainer").exists(), "a finished training needs none of its states"
    config = validated("model=bert_base", "task=glue/sst2", f"model.source={tmp_path / 'here' / 'checkpoint'}")
    model, _ = load(config.model, config.task)
    for name, tensor in weights(tmp_path / "here").items():
        assert torch.equal(model.state_dict()[name].cpu(), tensor), name


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("device", "half"), [("cpu", False), ("cuda", True)])
def test_it_trains_on_the_device_that_is_asked_for_with_the_batch_that_is_asked_for(
    device: str, half: bool, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingArguments, "_validate_args", lambda self: None, raising=False)
    settings = finetuning.training_arguments(composed(*arguments), tmp_path, torch.device(device), torch.float32)
    assert settings.bf16 == half
    assert settings.use_cpu == (device == "cpu")
    assert settings.train_batch_size == 8
    assert settings.n_gpu <= 1


def test_other_gpus_and_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"model\.device: 'cuda:1' .*CUDA_VISIBLE_DEVICES=1"):
        finetuning.check_device(torch.device("cuda:1"))
    finetuning.check_device(torch.device("cuda:0"))
    monkeypatch.setattr(finetuning, "processes", lambda: 2)
    with pytest.raises(UsageError, match="WORLD_SIZE: 2 processes, fine-tuning takes one"):
        finetuning.check_alone()
