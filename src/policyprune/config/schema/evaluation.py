"""What is measured: what can be set of it."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from policyprune.config.fields import choice, number


@dataclass
class Latency:
    """Timed forward passes of the transformer."""

    batch_sizes: list[int] = number(at_least=1)
    length: int = number(at_least=1)
    repeats: int = number(at_least=0)  # 0: not measured


@dataclass
class ZeroShot:
    """Accuracy on multiple-choice questions, by lm-evaluation-harness."""

    tasks: list[str] = choice("piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "boolq")  # empty: none
    source: str = choice("auto", "hub", "embedded")  # of the questions; auto: the hub where it can be reached
    limit: int | None = number(at_least=1)  # the first documents of each task; null: all
    num_fewshot: int = number(at_least=0)
    batch_size: int = number(at_least=1)  # answers per forward pass


@dataclass
class Evaluation:
    """What is measured of the dense, the one-shot and the pruned model."""

    name: str = MISSING
    lengths: list[int] = number(at_least=2)  # perplexity windows in tokens
    max_tokens: int | None = number(at_least=2)  # null: the whole test split
    batch_tokens: int = number(at_least=1)
    one_shot: list[str] = choice("global", "per_layer")  # metric-only masks to compare with
    fresh_process: bool = MISSING  # load the checkpoint without policyprune and measure it there
    latency: Latency = field(default_factory=Latency)
    zero_shot: ZeroShot = field(default_factory=ZeroShot)
