"""How far a model is from the dense one on calibration sequences: a loss that needs no labels and has little noise."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from policyprune.errors import UsageError
from policyprune.models.sequences import logits_of
from policyprune.tasks.task import CalibrationData

MOST_CLASSES = 128  # of the dense model's distribution that are kept; the others count as one
ANSWERS = ("start_logits", "end_logits")
STEEPEST = 3.0  # log2 of what logits are multiplied by at most, where their scale is free
NARROWINGS = 16  # of the interval that the best scale is looked for in, by the golden ratio

Known = tuple[Tensor, Tensor, Tensor]  # classes (N, k), their log-probabilities (N, k), that of all others (N, 1)


@dataclass(frozen=True)
class Divergence:
    """Calibration data whose loss is the Kullback-Leibler divergence of a model from the dense one, KL(dense || model).

    It is the mean over what the model predicts of a sequence: a token or class at each of its tokens, or one class, or
    the two ends of an answer. Of a large vocabulary the `MOST_CLASSES` tokens that are the likeliest to the dense model
    are told apart. A model of one output (a score) has half its squared change. What the dense model says is computed
    once for each sequence.

    With `scaled` the logits of classes and answers are multiplied by the one number that brings those of a call nearest
    to the dense ones: what is left is the order of the classes, not how sure the model is of it. Tokens stay as they
    are, since a perplexity depends on that.
    """

    data: CalibrationData
    dense: PreTrainedModel
    scaled: bool = False
    known: dict[int, Known] = field(default_factory=dict, repr=False)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sequence without padding, (N,) int64."""
        return self.data.lengths

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        """Arguments of the model's forward: rows (B,)."""
        return self.data.inputs(rows)

    def loss(self, model: PreTrainedModel, rows: Tensor) -> Tensor:
        """Divergence of each sequence: rows (B,) -> (B,) float32 on the model's device."""
        new = torch.tensor([row for row in rows.tolist() if row not in self.known], dtype=torch.long)
        if len(new):
            for row, teacher in zip(new.tolist(), self._of_dense(new), strict=True):
                self.known[row] = teacher
        scores, known = _scores(model, self.inputs(rows)), [self.known[row] for row in rows.tolist()]
        if self.scaled and not model.can_generate():
            scores = _nearest(list(scores), known)
        each = [_divergence(of_row, of_dense) for of_row, of_dense in zip(scores, known, strict=True)]
        return torch.stack(each).to(model.device)

    @torch.no_grad()
    def _of_dense(self, rows: Tensor) -> Iterator[Known]:
        for scores in _scores(self.dense, self.inputs(rows)):
            likely = functional.log_softmax(scores, -1) if scores.shape[-1] > 1 else scores
            top = likely.topk(min(MOST_CLASSES, likely.shape[-1]), -1)
            yield top.indices, top.values, _others(top.values)


def _divergence(scores: Tensor, known: Known) -> Tensor:
    """Mean over N predictions (N, classes) of KL(dense || softmax(scores)); a scalar."""
    classes, log_p, others = (tensor.to(scores.device) for tensor in known)
    if scores.shape[-1] == 1:
        return (scores - log_p).square().mean() / 2
    log_q = functional.log_softmax(scores, -1).gather(-1, classes)
    each = (log_p.exp() * (log_p - log_q)).sum(-1)
    if classes.shape[-1] < scores.shape[-1]:
        each = each + (others.exp() * (others - _others(log_q))).sum(-1)
    return each.mean()


def _nearest(scores: Sequence[Tensor], known: Sequence[Known]) -> Iterator[Tensor]:
    """The logits (N, classes) of all sequences times the number with the least divergence; a score as it is.

    The divergence is convex in that number, so a golden-section search over its logarithm finds it.
    """
    if any(of_row.shape[-1] == 1 for of_row in scores):
        return iter(scores)

    def total(exponent: float) -> float:
        each = [_divergence(of_row * 2**exponent, own) for of_row, own in zip(scores, known, strict=True)]
        return float(torch.stack(each).double().sum())

    ratio = (math.sqrt(5) - 1) / 2
    low, high = -STEEPEST, STEEPEST
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = total(left), total(right)
    for _ in range(NARROWINGS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = total(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = total(right)
    return (of_row * 2 ** ((low + high) / 2) for of_row in scores)


def _others(log_likely: Tensor) -> Tensor:
    """Log-probability (N, 1) of all classes but those with `log_likely` (N, k)."""
    rest = 1 - log_likely.double().exp().sum(-1, keepdim=True)
    return rest.clamp(min=1e-9).log().float()


def _scores(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Iterator[Tensor]:
    """The logits (N, classes) float32 of each sequence: one row for each of its tokens, of its class, or of an end.

    UsageError for a model that gives none.
    """
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    if model.can_generate():  # logits of a batch of sequences would be large
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
        for states, own in zip(hidden, mask.to(hidden.device), strict=True):
            yield logits_of(model, states[own])
        return
    out = model(**inputs)
    if "logits" in out:
        for of_row, own in zip(out.logits.float(), mask.to(out.logits.device), strict=True):
            yield of_row[own] if of_row.dim() == 2 else of_row[None]  # of each token, or of the sequence
    elif "start_logits" in out:
        ends = torch.stack([getattr(out, name) for name in ANSWERS], 1).float()
        for of_row, own in zip(ends, mask.to(ends.device), strict=True):
            yield of_row[:, own]
    else:
        raise UsageError(
            f"model: {type(model).__name__} gives no logits, whose divergence from the dense model this optimizer "
            "looks at; use method=policy_gradient or another optimizer"
        )
