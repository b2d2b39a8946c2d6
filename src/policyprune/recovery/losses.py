"""What is trained on: the task's own loss, and the distances from the dense model. Of a batch, as a scalar."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from policyprune.errors import UsageError
from policyprune.tasks.classification import losses
from policyprune.tasks.question_answering import span_losses

Batch = dict[str, Tensor]  # arguments of the model's forward, and "labels": tokens, classes, or both ends of answers
IMPOSSIBLE = -1e4  # logit of an answer in padding: its probability is 0, and the divergence stays a number
TINY = 1e-12  # of a hidden state's square


def task_loss(out: Any, batch: Batch) -> Tensor:
    """The mean over the tokens or the examples of a batch, float32."""
    labels = batch["labels"]
    if "start_logits" in out:
        return span_losses(out, labels, batch["attention_mask"]).mean()
    if out.logits.dim() == 3:
        return functional.cross_entropy(out.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
    return losses(out.logits, labels).mean()


def divergence(out: Any, of_dense: Any, batch: Batch, temperature: float) -> Tensor:
    """KL(dense || model) at a temperature, times its square: the mean over all that is predicted, float32.

    Of a model with one output it is half the squared difference. UsageError for models of other outputs.
    """
    mine, theirs = _predictions(out, batch), _predictions(of_dense, batch)
    if mine.shape != theirs.shape:
        raise UsageError(
            f"the dense model predicts {tuple(theirs.shape)}, the smaller one {tuple(mine.shape)}: they are not of one "
            "kind and vocabulary"
        )
    if mine.shape[-1] == 1:
        return (mine - theirs).square().mean() / 2
    log_q, log_p = (functional.log_softmax(logits / temperature, -1) for logits in (mine, theirs))
    return temperature**2 * functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def hidden_distance(out: Any, of_dense: Any, batch: Batch, layers: Sequence[int]) -> Tensor:
    """Squared distance between the hidden states of both models, in shares of the dense one's square: the mean over
    tokens and layers, padding left out, float32. `layers` are those of the dense model that the model's own answer to.
    """
    tokens = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).float()
    total = torch.zeros((), device=tokens.device)
    for own, layer in zip(out.hidden_states[1:], layers, strict=True):
        theirs = of_dense.hidden_states[1 + layer].float()
        shares = (own.float() - theirs).square().sum(-1) / theirs.square().sum(-1).clamp(min=TINY)
        total = total + (tokens * shares).sum() / tokens.sum()
    return total / len(layers)


def answering(kept: Sequence[int], count: int) -> list[int]:
    """Of each layer that was kept, the layer of the dense model's `count` whose output is the same where nothing was
    lost: the last one before the next that was kept, since those between are passed by."""
    return [after - 1 for after in [*kept[1:], count]]


def _predictions(out: Any, batch: Batch) -> Tensor:
    """Logits (N, classes) float32: a row for each token, or of each example, or for both ends of each answer."""
    if "start_logits" in out:
        ends = torch.stack([out.start_logits, out.end_logits], 1).float()
        return ends.masked_fill(batch["attention_mask"][:, None] == 0, IMPOSSIBLE).flatten(0, 1)
    logits: Tensor = out.logits.float()
    return logits.flatten(0, 1) if logits.dim() == 3 else logits
