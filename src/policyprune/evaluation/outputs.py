"""What classification and question answering share: raw outputs of a model, and the error of a mean over examples."""

from collections.abc import Callable, Sequence

import torch
from scipy.stats import sem
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.evaluation.measures import finite
from policyprune.tasks import by_length
from policyprune.tasks.labelled import Encoded


@torch.inference_mode()
def outputs(
    model: PreTrainedModel,
    examples: Encoded,
    names: tuple[str, ...],
    batch_tokens: int,
    advance: Callable[[int], object] = lambda done: None,
) -> list[tuple[Tensor, ...]]:
    """The named outputs of each example, in order, float32 on the CPU, each without its batch dimension.

    Examples of about the same length share a batch of about `batch_tokens` tokens. `advance(n)` is told how many
    examples were done.
    """
    rows_of_outputs: list[tuple[Tensor, ...]] = [()] * len(examples.lengths)
    mean = max(1, int(examples.lengths.float().mean()))
    for rows in by_length(examples.lengths, max(1, batch_tokens // mean)):
        inputs = {name: tensor.to(model.device) for name, tensor in examples.inputs(rows).items()}
        out = model(**inputs)
        columns = [getattr(out, name).float().cpu() for name in names]
        for position, row in enumerate(rows.tolist()):
            rows_of_outputs[row] = tuple(column[position] for column in columns)
        advance(len(rows))
    return rows_of_outputs


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of a mean, sqrt(p (1 - p) / (n - 1)) for n answers that are right or wrong; None for one value."""
    return finite(float(sem(values))) if len(values) > 1 else None
