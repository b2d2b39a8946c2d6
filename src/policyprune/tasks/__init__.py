"""What a model is calibrated and tested on: one module for each kind of task."""

from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config import schema
from policyprune.tasks import classification, language_modeling, question_answering
from policyprune.tasks.task import CalibrationData, Task, by_length

__all__ = ["TASKS", "BuiltTask", "CalibrationData", "Task", "build", "by_length", "check_model"]


class BuiltTask(Task, Protocol):
    """A task with its test data."""

    def check(self, model: PreTrainedModel) -> list[str]:
        """UsageError for data that the model cannot be measured on; else what a reader of its numbers has to know.

        Weights are not needed.
        """


class TaskModule(Protocol):
    """What a module of this package has for its kind of task; `config` is of the class that it is registered for."""

    def build(self, config: Any, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> BuiltTask:
        """Read and tokenise the data; UsageError when there is too little of it.

        `model` is the dense one. A task may measure on it what its config leaves open.
        """

    def check_model(self, config: Any, model: PreTrainedModel) -> None:
        """UsageError for a model that does not fit this task. Weights are not needed."""


TASKS: dict[type[schema.Task], TaskModule] = {
    schema.LanguageModeling: language_modeling,
    schema.Chat: language_modeling,
    schema.Mixture: language_modeling,
    schema.Generated: language_modeling,
    schema.Classification: classification,
    schema.QuestionAnswering: question_answering,
}


def build(config: schema.Task, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> BuiltTask:
    """Read and tokenise the data of a task: `TaskModule.build`."""
    return TASKS[type(config)].build(config, tokenizer, model)


def check_model(config: schema.Task, model: PreTrainedModel) -> None:
    """Refuse a model that does not fit a task: `TaskModule.check_model`."""
    TASKS[type(config)].check_model(config, model)
