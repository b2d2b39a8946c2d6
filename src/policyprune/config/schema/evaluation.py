"""What is measured: what can be set of it."""

from dataclasses import dataclass, field

from policyprune.config.fields import choice, number, setting

QUESTIONS = ("piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "boolq")


@dataclass(kw_only=True)
class Latency:
    """Timed forward passes of the transformer."""

    batch_sizes: list[int] = number([8], at_least=1, help="sequences of a forward pass, each size is timed")
    length: int = number(128, at_least=1, help="tokens of each sequence")
    repeats: int = number(5, at_least=0, help="timed forward passes; 0: not measured")


@dataclass(kw_only=True)
class ZeroShot:
    """Accuracy on multiple-choice questions, by lm-evaluation-harness."""

    tasks: list[str] = choice([], choices=QUESTIONS, help="sets of questions; empty: none")
    source: str = choice(
        "auto",
        choices=("auto", "hub", "embedded"),
        help="where the questions come from; auto: the hub where it can be reached",
    )
    limit: int | None = number(None, at_least=1, help="the first documents of each task; null: all")
    num_fewshot: int = number(0, at_least=0, help="solved examples before each question")
    batch_size: int = number(16, at_least=1, help="answers per forward pass")


@dataclass(kw_only=True)
class Evaluation:
    """What is measured of the dense, the one-shot and the pruned model."""

    name: str = setting(help="which option this is")
    lengths: list[int] = number([128], at_least=2, help="perplexity windows in tokens; empty: none")
    max_tokens: int | None = number(65536, at_least=2, help="of the test text; null: the whole test split")
    batch_tokens: int = number(2048, at_least=1, help="tokens per forward pass")
    one_shot: list[str] = choice(
        ["global", "per_layer"],
        choices=("global", "per_layer"),
        help="masks by the importance scores alone to compare with",
    )
    fresh_process: bool = setting(True, help="load the checkpoint without policyprune and measure it there")
    latency: Latency = field(default_factory=Latency)
    zero_shot: ZeroShot = field(default_factory=ZeroShot)
