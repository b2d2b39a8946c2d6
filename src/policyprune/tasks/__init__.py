"""Calibration sequences, a loss and a test protocol."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config import schema
from policyprune.tasks import glue, language_modeling, squad
from policyprune.tasks.fit import check_fit, check_head
from policyprune.tasks.task import Task, by_length

__all__ = ["Task", "build", "by_length", "check_fit", "check_head"]


def build(config: schema.Task, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> Task:
    """Read and tokenise the data of a task; UsageError when there is too little of it.

    `model` is the dense one, which decides where BOS stands where the config says `auto`.
    """
    if isinstance(config, schema.Classification):
        return glue.build(config, tokenizer)
    if isinstance(config, schema.QuestionAnswering):
        return squad.build(config, tokenizer)
    assert isinstance(config, schema.LanguageModeling)
    return language_modeling.build(config, tokenizer, model)
