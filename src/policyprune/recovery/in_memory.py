"""What a caller has in memory as something to train on: sequences of tokens, or labelled examples."""

from collections.abc import Iterator

import torch
from torch import Tensor

from policyprune.config.schema import Trained
from policyprune.errors import UsageError
from policyprune.recovery.losses import Batch
from policyprune.recovery.material import HELD_OUT, Endless, Material
from policyprune.tasks.in_memory import ANSWERS, LabelledBatches
from policyprune.tasks.packing import Sequences
from policyprune.tasks.task import CalibrationData


def material_in_memory(data: CalibrationData, options: Trained, seed: int) -> Material:
    """The data, of which the last rows are held out: an eighth at most. UsageError for data without labels of a known
    kind, and for too little."""
    if not isinstance(data, Sequences | LabelledBatches):
        raise UsageError("data: a task of your own has a loss, but no labels to train on; give texts, ids or examples")
    labels = None if isinstance(data, Sequences) else _labels(data)
    count, labelled = len(data.lengths), labels is not None
    judging = min(options.held_out or HELD_OUT[labelled], count // 8)
    if not judging:
        raise UsageError(f"data: {count} sequences are too few to train on some and judge by others, give 8 or more")

    def epoch(number: int) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed + number)
        yield from torch.randperm(count - judging, generator=generator).tolist()

    def collate(rows: list[int]) -> Batch:
        index = torch.tensor(rows)
        inputs = data.inputs(index)
        return {**inputs, "labels": inputs["input_ids"] if labels is None else labels[index]}

    return Material(
        training=Endless(epoch),
        held_out=list(range(count - judging, count)),
        collate=collate,
        labelled=labelled,
        facts={"rows": count - judging},
    )


def _labels(data: LabelledBatches) -> Tensor:
    if "labels" not in data.targets:
        return torch.stack([data.targets[name].long() for name in ANSWERS], 1)
    if not data.classes:
        raise UsageError("data: examples with one label each are trained on, not with a label for each token or class")
    return data.targets["labels"].view(-1)
