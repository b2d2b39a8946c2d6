"""How good a model is by its losses on the sequences of any task, and by its classes where these have labels."""

import math
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from policyprune.evaluation.accuracy import outputs, predictions, standard_error
from policyprune.progress import bar
from policyprune.tasks.classification import losses
from policyprune.tasks.in_memory import LabelledBatches
from policyprune.tasks.packing import Sequences
from policyprune.tasks.task import CalibrationData, by_length


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Means over sequences. `loss` (nats) and `accuracy` have the standard error of a mean, None for one sequence.

    `perplexity` is exp(loss) on texts and token ids, where all sequences have one length; `accuracy` is the share of
    the right classes on labelled examples. What does not apply is None. `bos`: whether BOS led each sequence of a text.
    """

    loss: float
    loss_stderr: float | None
    perplexity: float | None = None
    accuracy: float | None = None
    accuracy_stderr: float | None = None
    sequences: int
    tokens: int
    bos: bool | None = None

    def __str__(self) -> str:
        """The numbers in a line."""
        numbers = {"perplexity": self.perplexity, "accuracy": self.accuracy, "loss": self.loss}
        words = [f"{name} {value:.4g}" for name, value in numbers.items() if value is not None]
        return f"{', '.join(words)} ({self.sequences:,} sequences, {self.tokens:,} tokens)"


@torch.inference_mode()
def measure(model: PreTrainedModel, data: CalibrationData, batch_tokens: int) -> EvaluationResult:
    """Loss of a model on `data`, and what else can be told of it. A bar shows how far it is."""
    sequences, tokens = len(data.lengths), int(data.lengths.sum())
    with bar(sequences, "evaluation", "sequence") as progress:
        if isinstance(data, LabelledBatches) and data.classes:
            logits = torch.stack(
                [row[0] for row in outputs(model, data.encoded, ("logits",), batch_tokens, progress.update)]
            )
            labels = data.targets["labels"].view(-1)
            labels = labels.long() if logits.shape[-1] > 1 else labels
            each = losses(logits, labels)
            right = (predictions(logits) == labels).double() if logits.shape[-1] > 1 else None
        else:
            size = max(1, batch_tokens * sequences // max(1, tokens))
            each, right = torch.empty(sequences, dtype=torch.float64), None
            for rows in by_length(data.lengths, size):
                each[rows] = data.loss(model, rows).double().cpu()
                progress.update(len(rows))
    loss = float(each.double().mean())
    texts = isinstance(data, Sequences)
    return EvaluationResult(
        loss=loss,
        loss_stderr=standard_error(each.double().tolist()),
        perplexity=(math.exp(loss) if loss < 700 else math.inf) if texts else None,
        accuracy=None if right is None else float(right.mean()),
        accuracy_stderr=None if right is None else standard_error(right.tolist()),
        sequences=sequences,
        tokens=tokens,
        bos=data.protocol.get("bos") if isinstance(data, Sequences) else None,
    )
