"""Whether a task and a model belong together: asked before anything is searched for."""

from transformers import PreTrainedModel

from policyprune.config.schema import Classification, Labelled, Task
from policyprune.errors import UsageError
from policyprune.models.sequences import longest_sequence
from policyprune.tasks import task
from policyprune.tasks.glue import ClassificationTask
from policyprune.tasks.labels import check_names
from policyprune.tasks.squad import QuestionAnsweringTask


def check_head(config: Task, model: PreTrainedModel) -> None:
    """UsageError for a head of another number of classes, and for examples longer than the model's positions.

    Weights are not needed.
    """
    if isinstance(config, Classification) and model.config.num_labels != config.classes:
        has = model.config.num_labels
        raise UsageError(
            f"task.classes: {config.classes} ({'a regression' if config.classes == 1 else 'classes'} of "
            f"task={config.name}), but the model's head has {has}; take a model that was fine-tuned on this task"
        )
    if isinstance(config, Labelled):
        most = longest_sequence(model.config)
        if most is not None and config.max_length > most:
            raise UsageError(
                f"task.max_length: {config.max_length} is more than the {most} positions of this model, use less"
            )


def check_fit(built: task.Task, model: PreTrainedModel) -> list[str]:
    """UsageError for a task whose data the model cannot be measured on; else what a reader of its numbers has to know.

    Weights are not needed.
    """
    if isinstance(built, ClassificationTask):
        check_head(built.config, model)
        check_names(built.calibration.names, model)
    if isinstance(built, QuestionAnsweringTask):
        check_head(built.config, model)
        return _unanswered(built)
    return []


def _unanswered(built: QuestionAnsweringTask) -> list[str]:
    told = []
    for split, questions in built.tests.items():
        without = sum(not row["answers"]["text"] for row in questions.rows)
        if without == len(questions.rows) and not built.config.no_answer:
            raise UsageError(f"task.test_splits: none of the {without} questions of {split} has an answer")
        if without and not built.config.no_answer:
            told.append(
                f"{without} of {len(questions.rows)} questions of {split} have no answer and count as wrong, as "
                "task.no_answer=false"
            )
    return told
