"""How good a model is at its task: one class for each kind of task."""

from collections.abc import Callable, Set
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.schema import Evaluation
from policyprune.evaluation.accuracy import ClassificationQuality
from policyprune.evaluation.answers import AnswerQuality
from policyprune.evaluation.measures import Measure
from policyprune.evaluation.perplexity import TextQuality
from policyprune.evaluation.zero_shot import ZeroShotQuestions
from policyprune.tasks import Task
from policyprune.tasks.classification import ClassificationTask
from policyprune.tasks.language_modeling import TextTask
from policyprune.tasks.other_texts import read_texts
from policyprune.tasks.question_answering import QuestionAnsweringTask


class Quality(Protocol):
    """Measures models on the test data of one task; the dense model first."""

    def check(self) -> list[str]:
        """What a reader of the measures has to know, a line each."""

    def trained_on(self, read: Set[str]) -> list[str]:
        """The same after a recovery that has read these documents (`Document.letters`)."""

    def identity(self) -> dict[str, Any] | None:
        """Test data and settings that decide on the measures of a model; None where more than numbers is kept of it."""

    def sample(self) -> "Quality":
        """The same on the first few examples, to see whether it can be measured at all."""

    def of(self, title: str, model: PreTrainedModel) -> list[Measure]:
        """Measures of a model in memory; `title` stands at the progress bar."""

    def elsewhere(self, checkpoint: Path, like: PreTrainedModel, trusted: bool = False) -> list[Measure]:
        """Measures of a checkpoint that another process loads without policyprune, on the device of `like`.

        `trusted`: leave to run code of the checkpoint that is not ours.
        """


def of_text(task: TextTask, options: Evaluation, tokenizer: PreTrainedTokenizerBase) -> Quality:
    """Perplexity, also of other texts, and zero-shot questions, where some are asked for."""
    windows = {length: task.windows(length, options.max_tokens) for length in options.lengths}
    asked = options.zero_shot.tasks
    zero_shot = ZeroShotQuestions(options.zero_shot, tokenizer, task.bos is not None) if asked else None
    texts = read_texts(options, task, tokenizer)
    return TextQuality(windows=windows, texts=texts, options=options, zero_shot=zero_shot)


QUALITIES: dict[type[Task], Callable[[Any, Evaluation, PreTrainedTokenizerBase], Quality]] = {
    TextTask: of_text,
    ClassificationTask: lambda task, options, tokenizer: ClassificationQuality(task, options.batch_tokens),
    QuestionAnsweringTask: lambda task, options, tokenizer: AnswerQuality(task, options.batch_tokens),
}


def quality_of(task: Task, options: Evaluation, tokenizer: PreTrainedTokenizerBase) -> Quality:
    """What measures this task; UsageError for texts and zero-shot questions that cannot be had."""
    return QUALITIES[type(task)](task, options, tokenizer)
