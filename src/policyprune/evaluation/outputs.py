"""Raw outputs of a model over encoded examples, batched by length."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

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

    Examples of about the same length share a batch of about `batch_tokens` tokens.
    """
    found: list[tuple[Tensor, ...]] = [()] * len(examples.lengths)
    mean = max(1, int(examples.lengths.float().mean()))
    for rows in by_length(examples.lengths, max(1, batch_tokens // mean)):
        inputs = {name: tensor.to(model.device) for name, tensor in examples.inputs(rows).items()}
        out = model(**inputs)
        columns = [getattr(out, name).float().cpu() for name in names]
        for position, row in enumerate(rows.tolist()):
            found[row] = tuple(column[position] for column in columns)
        advance(len(rows))
    return found
