"""What a latency budget promised, and what the smaller model takes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.schema import LatencyBudget
from policyprune.evaluation.latency.blocks import block_seconds
from policyprune.evaluation.latency.rounds import ratios, times
from policyprune.evaluation.measure import Measure
from policyprune.models.adapter import adapt
from policyprune.pruning.budget.budget import Budget


def kept_latency(
    config: LatencyBudget, dense: PreTrainedModel, smaller: tuple[str, PreTrainedModel], budget: Budget, mask: Tensor
) -> Iterator[tuple[str, Measure]]:
    """Yield (subject, measure): milliseconds of the blocks of both models, and the promised and achieved share.

    The models take turns; the share is the median over the rounds of the smaller model's time over the dense one's.
    """
    subject, model = smaller
    seconds = block_seconds({"dense": dense, subject: model}, config.batch_size, config.sequence_length, config.repeats)
    protocol: dict[str, Any] = {
        "batch_size": config.batch_size,
        "length": config.sequence_length,
        "repeats": config.repeats,
        "threads": torch.get_num_threads(),
    }
    yield from times("block_latency", seconds, protocol)
    left = float((budget.pool_limit - budget.spent(mask.to(budget.cost.device))).sum())
    promised = config.keep - left / len(adapt(dense).layers)
    protocol = {**protocol, "keep": config.keep}
    yield subject, Measure("promised_block_latency_share", promised, "", protocol)
    yield from ratios("block_latency_share", seconds, "dense", protocol)
