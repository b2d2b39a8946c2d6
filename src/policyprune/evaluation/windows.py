"""Whether a model takes sequences as long as those that it is to be measured on."""

from transformers import PreTrainedModel

from policyprune.config.schema import Evaluation
from policyprune.errors import UsageError
from policyprune.models.loading import positions


def check_lengths(config: Evaluation, model: PreTrainedModel) -> None:
    """UsageError for perplexity windows of more tokens than the model has positions; weights are not needed."""
    most = positions(model.config)
    for length in config.lengths:
        if most is not None and length > most:
            raise UsageError(f"evaluation.lengths: {length} is more than the {most} positions of this model, use less")
