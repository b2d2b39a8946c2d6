"""Fine-tune an encoder on a task, with Hugging Face's Trainer."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from policyprune.config.schema import Classification, Finetuning, QuestionAnswering
from policyprune.errors import UsageError
from policyprune.evaluation.plausibility import doubts
from policyprune.evaluation.quality import quality_of
from policyprune.models.device import device_of
from policyprune.models.loading import load, skeleton
from policyprune.processes import processes
from policyprune.recovery.bar import TrainingBar
from policyprune.recovery.devices import check_device
from policyprune.recovery.trainer import base_arguments, last_whole
from policyprune.runs.folder import finished_before, recorded
from policyprune.runs.record import TRAINER, Record
from policyprune.runs.rehearsal import rehearse_evaluation
from policyprune.runs.stages import measured
from policyprune.runs.summary import closing_words, summary
from policyprune.storage.files import write_folder
from policyprune.tasks import build
from policyprune.tasks.classification import ClassificationTask
from policyprune.tasks.labels import name_classes
from policyprune.tasks.question_answering import QuestionAnsweringTask

log = logging.getLogger(__name__)
Labelled = ClassificationTask | QuestionAnsweringTask


def run(config: Finetuning, folder: Path) -> Record:
    """Fine-tune `model.source` into `folder/checkpoint`; an interrupted run goes on from its last epoch."""
    if not isinstance(config.task, Classification | QuestionAnswering):
        raise UsageError(f"task: {config.task.name!r} cannot be fine-tuned on, take a glue or squad task")
    record = finished_before(config, folder)
    if record is not None:
        log.info("this fine-tuning is finished already, force=true repeats it")
    else:
        check_alone()
        check_device(device_of(config.model))
        skeleton(config.model, config.task, new_head(config))
        record = _run(config, folder)
    print(f"\n{summary(record)}\n\n{closing_words(record, folder)}")
    return record


def _run(config: Finetuning, folder: Path) -> Record:
    torch.manual_seed(config.seed)
    with recorded(config, folder, device_of(config.model)) as record:
        with measured("load", record.stages):
            model, tokenizer = load(config.model, config.task, new_head(config))
            task = build(config.task, tokenizer)
            assert isinstance(task, Labelled)
            record.protocol = task.protocol
            if isinstance(task, ClassificationTask) and task.calibration.names:
                name_classes(model, task.calibration.names, task.config)
            for line in task.check(model):
                record.warn(line)
            quality = quality_of(task, config.evaluation, tokenizer)
            rehearse_evaluation(quality, model)
        with measured("training", record.stages):
            _train(config, model, tokenizer, task, folder / TRAINER)
        with measured("export", record.stages), write_folder(folder / "checkpoint") as scratch:
            model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
        with measured("evaluation", record.stages):
            for measure in quality.of("fine-tuned", model):
                record.add("dense", *measure)
        for line in doubts(record.results):
            record.warn(line)
    return record


def _train(
    config: Finetuning, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Labelled, folder: Path
) -> None:
    """Train a model in place, from the last epoch that is in `folder`."""
    trainer = Trainer(
        model.requires_grad_(True),
        training_arguments(config, folder, device_of(config.model), model.dtype),
        train_dataset=TrainingSet(task, model),
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[TrainingBar()],
    )
    trainer.remove_callback(PrinterCallback)
    with torch.enable_grad():
        last = last_whole(folder)
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    model.eval().requires_grad_(False)


def new_head(config: Finetuning) -> dict[str, Any]:
    """Settings of a head that is trained from nothing."""
    return {"num_labels": config.task.classes} if isinstance(config.task, Classification) else {}


def check_alone() -> None:
    """UsageError for several processes."""
    if processes() > 1:
        raise UsageError(f"WORLD_SIZE: {processes()} processes, fine-tuning takes one")


def training_arguments(config: Finetuning, folder: Path, device: torch.device, dtype: torch.dtype) -> TrainingArguments:
    """Settings of the Trainer. It trains on one device, so that `training.batch_size` is the batch."""
    half = device.type != "cpu" and dtype == torch.float32 and torch.cuda.is_bf16_supported()
    return base_arguments(
        folder,
        device,
        config.seed,
        half,
        learning_rate=config.training.learning_rate,
        per_device_train_batch_size=config.training.batch_size,
        num_train_epochs=config.training.epochs,
        warmup_steps=config.training.warmup,
        weight_decay=config.training.weight_decay,
        save_strategy="epoch",
        logging_steps=50,
        train_sampling_strategy="group_by_length",
        length_column_name="length",
    )


class TrainingSet(Dataset[dict[str, Any]]):
    """The calibration examples of a task as the Trainer wants them, without padding."""

    def __init__(self, task: Labelled, model: PreTrainedModel) -> None:
        self._task = task
        self._labels = task.calibration.labels_for(model) if isinstance(task, ClassificationTask) else None

    def __len__(self) -> int:
        return len(self._task.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        inputs: dict[str, Any] = {
            name: tensor[0].tolist() for name, tensor in self._task.inputs(torch.tensor([index])).items()
        }
        return {**inputs, **self._target(index)}

    def _target(self, index: int) -> dict[str, Tensor]:
        if isinstance(self._task, ClassificationTask):
            assert self._labels is not None
            return {"labels": self._labels[index]}
        start, end = self._task.calibration.spans[index]
        return {"start_positions": start, "end_positions": end}
