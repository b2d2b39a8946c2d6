"""Whether a model takes sequences as long as those that it is to be searched and measured on."""

from transformers import PreTrainedModel

from policyprune.config.schema import Evaluation, LanguageModeling, Task
from policyprune.errors import UsageError
from policyprune.models.sequences import longest_sequence


def check_lengths(config: Evaluation, task: Task, model: PreTrainedModel) -> None:
    """UsageError for perplexity windows, timed sequences, and calibration sequences of text that are too long.

    Weights are not needed. Labelled examples are cut at `task.max_length`, which `tasks/` looks at.
    """
    most = longest_sequence(model.config)
    wanted = [("evaluation.lengths", length) for length in config.lengths if isinstance(task, LanguageModeling)]
    if config.latency.repeats and config.latency.batch_sizes:
        wanted.append(("evaluation.latency.length", config.latency.length))
    if isinstance(task, LanguageModeling):
        wanted.append(("task.calibration.length", task.calibration.length))
    for key, length in wanted:
        if most is not None and length > most:
            raise UsageError(f"{key}: {length} is more than the {most} positions of this model, use less")
