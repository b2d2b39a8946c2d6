"""Metrics: which direction is better, what makes another column of one, and how their values are written."""

from collections.abc import Iterable
from typing import Any

Setting = tuple[tuple[str, Any], ...]  # the parts of a protocol that make another column: (("length", 128),)

LOWER = ("perplexity", "cross_entropy", "squared_error")
HIGHER = (
    "accuracy",
    "f1",
    "exact_match",
    "matthews",
    "pearson",
    "spearman",
    "agreement",
    "zero_shot_mean",
    "zero_shot_mean_acc",
    "acc",
    "acc_norm",
)
SETTING_KEYS = ("length", "sequence_length", "split", "task", "batch_size")
NAMES = {
    "f1": "F1",
    "acc_norm": "acc_norm",
    "zero_shot_mean": "zero-shot mean",
    "zero_shot_mean_acc": "zero-shot mean of acc",
    "block_macs": "MACs of the blocks",
    "block_latency": "latency of the blocks",
    "latency_ratio": "latency, share of the dense model's",
    "block_latency_share": "latency of the blocks, share of the dense model's",
}
ARROWS = {-1: "↓", 0: "", 1: "↑"}


def better(metric: str) -> int:
    """1 where high values are better, -1 where low ones are, 0 where nobody knows."""
    return 1 if metric in HIGHER else -1 if metric in LOWER else 0


def setting_of(protocol: dict[str, Any]) -> Setting:
    """What of a protocol tells two columns of one metric apart; a zero-shot task is known by its name alone."""
    keys = ("task",) if "task" in protocol else SETTING_KEYS
    return tuple((key, protocol[key]) for key in keys if key in protocol)


def setting_title(setting: Iterable[tuple[str, Any]]) -> str:
    """A setting in words: `128 tokens`, `validation`, `piqa`."""
    return ", ".join(f"{value} tokens" if "length" in key else str(value) for key, value in setting)


def title(metric: str) -> str:
    """The metric in words."""
    return NAMES.get(metric, metric.replace("_", " "))


def written(metric: str, value: float) -> str:
    """A value with as many digits as it deserves."""
    if metric in LOWER:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.2f}" if metric == "perplexity" else f"{value:.4f}"
    return f"{value:.4f}"


def signed(metric: str, value: float) -> str:
    """A difference with its sign."""
    return f"{'-' if value < 0 else '+'}{written(metric, abs(value))}"
