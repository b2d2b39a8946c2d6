"""Perplexity over fixed windows of text: exp of the mean loss over all predicted tokens."""

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.schema import Evaluation, Task, Text
from policyprune.evaluation.fresh_process import perplexity_elsewhere
from policyprune.evaluation.measures import Measure, digest, finite
from policyprune.evaluation.zero_shot import ZeroShotQuestions
from policyprune.models.sequences import token_losses
from policyprune.progress import bar
from policyprune.tasks.other_texts import OtherText
from policyprune.tasks.task import check_positions

BATCH_TOKENS = 4096


@torch.inference_mode()
def window_losses(
    model: PreTrainedModel,
    windows: Tensor,
    batch_tokens: int = BATCH_TOKENS,
    advance: Callable[[int], object] = lambda done: None,
) -> Tensor:
    """Mean loss (nats, float64) of each window (N, L) -> (N,): each token but the first of its window is predicted.

    `advance(n)` is told how many windows were done. NaN where a loss is not a number, none is dropped.
    """
    losses = []
    for batch in windows.split(max(1, batch_tokens // windows.shape[1])):
        losses.append(token_losses(model, batch.to(model.device)).double().mean(-1).cpu())
        advance(len(batch))
    return torch.cat(losses)


def perplexity_of_losses(losses: Tensor) -> tuple[float, float | None]:
    """Perplexity of the mean losses of windows (N,), and its standard error, as if windows were independent.

    The error is None for one window and where the perplexity is not finite.
    """
    mean = float(losses.mean())
    value = math.exp(mean) if not mean >= 700 else math.inf
    error = value * float(losses.std()) / math.sqrt(len(losses)) if len(losses) > 1 else None
    return value, error if error is not None and math.isfinite(error) else None


def perplexity(model: PreTrainedModel, windows: Tensor, batch_tokens: int = BATCH_TOKENS) -> float:
    """Perplexity of windows (N, L) of token ids, NaN where a loss is not a number."""
    return perplexity_of_losses(window_losses(model, windows, batch_tokens))[0]


def measure_perplexity(
    model: PreTrainedModel, windows: Tensor, batch_tokens: int = BATCH_TOKENS, title: str = "perplexity"
) -> Measure:
    """The same as a measure with its standard error, and with a progress bar."""
    with bar(len(windows), f"{title}, {windows.shape[1]} tokens", "window") as progress:
        value, error = perplexity_of_losses(window_losses(model, windows, batch_tokens, progress.update))
    return Measure("perplexity", finite(value), "", _protocol(windows, model), error)


def check_lengths(options: Evaluation, task: Task, model: PreTrainedModel) -> None:
    """UsageError for perplexity windows and timed sequences that are longer than the model's positions.

    Weights are not needed.
    """
    if isinstance(task, Text) and options.lengths:
        check_positions(model, {"evaluation.lengths": max(options.lengths)})
    if options.latency.repeats and options.latency.batch_sizes:
        check_positions(model, {"evaluation.latency.length": options.latency.length})


@dataclass(frozen=True, kw_only=True)
class TextQuality:
    """Perplexity over windows of each length, of the task's text and of others, then zero-shot accuracy."""

    windows: dict[int, Tensor]
    options: Evaluation
    texts: Sequence[OtherText] = ()
    zero_shot: ZeroShotQuestions | None = None

    def check(self) -> list[str]:
        """A line for each text that calibration has read some of."""
        return [line for text in self.texts for line in text.check()]

    def trained_on(self, read: Set[str]) -> list[str]:
        """A line for each text that a recovery has read some of."""
        return [line for text in self.texts for line in text.trained_on(read)]

    def identity(self) -> dict[str, Any]:
        """The windows, and what is asked of whom."""
        of_texts = [
            [text.name, text.text_hash, {length: digest(ids) for length, ids in text.windows.items()}]
            for text in self.texts
        ]
        return {
            "windows": {length: digest(ids) for length, ids in self.windows.items()},
            "texts": of_texts,
            "batch_tokens": self.options.batch_tokens,
            "zero_shot": self.zero_shot.identity() if self.zero_shot else None,
        }

    def sample(self) -> "TextQuality":
        """A window of each length of each text, a question of each task."""
        windows = {length: ids[:1] for length, ids in self.windows.items()}
        texts = [text.first() for text in self.texts]
        return replace(self, windows=windows, texts=texts, zero_shot=self.zero_shot and self.zero_shot.sample())

    def of(self, title: str, model: PreTrainedModel) -> list[Measure]:
        """A perplexity for each window length, of each text, then the accuracy on each zero-shot task."""
        most = self.options.batch_tokens
        rows = [measure_perplexity(model, ids, most, title) for ids in self.windows.values()]
        for text in self.texts:
            named = {"text": text.name, "test_text": text.text_hash}
            for ids in text.windows.values():
                row = measure_perplexity(model, ids, most, f"{title}, {text.name}")
                rows.append(row._replace(protocol={**named, **row.protocol}))
        return rows + (self.zero_shot.of(model, f"{title}, zero-shot") if self.zero_shot else [])

    def elsewhere(self, checkpoint: Path, like: PreTrainedModel, trusted: bool = False) -> list[Measure]:
        """The perplexities of the task's text in a fresh process, with an independent computation."""
        values = perplexity_elsewhere(checkpoint, self.windows, like, self.options.batch_tokens, trusted)
        return [
            Measure("perplexity", value, "", _protocol(self.windows[length], like)) for length, value in values.items()
        ]


def _protocol(windows: Tensor, model: PreTrainedModel) -> dict[str, int | str]:
    count, length = windows.shape
    return {"length": length, "windows": count, "dtype": str(model.dtype).removeprefix("torch.")}
