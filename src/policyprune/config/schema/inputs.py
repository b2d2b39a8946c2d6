"""What goes into a run: the dense model, what may go and remain of it, and what is measured."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from policyprune.config.fields import Described, choice, named, number, setting

UNITS = ("attention", "query_head", "ffn", "attention_block", "ffn_block", "layer", "hidden")
DTYPES = ("auto", "float32", "bfloat16", "float16")
QUESTIONS = ("piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "boolq")


@dataclass(kw_only=True)
class Model:
    """Where the dense model comes from and how it is held."""

    name: str = setting(help="what tables and folders call it")
    source: str = setting(
        help="hub id, local directory, pkg://package/path, or a .gguf file in any of these, also in parts with spaces "
        "between"
    )
    fine_tuned: dict[str, str] | None = setting({}, help="sources by task, of which one takes the place of `source`")
    revision: str | None = setting(None, help="branch, tag or commit on the hub; null: the main branch")
    device: str = setting("auto", help="auto, cpu, cuda, cuda:1, ...; auto: a GPU where there is one")
    dtype: str = choice("auto", choices=DTYPES, help="of the weights; auto: bfloat16 or float16 on a GPU, else float32")
    search_dtype: str = choice(
        "auto",
        choices=DTYPES,
        help="of the search's forward passes; auto: `dtype`, but bfloat16 for float32 on a processor made for it",
    )
    attn_implementation: str = choice(
        "auto",
        choices=("auto", "sdpa", "eager", "flash_attention_2", "flex_attention"),
        help="attention of transformers; auto: its own choice",
    )
    device_map: str | None = choice(
        None,
        choices=("auto", "balanced", "balanced_low_0", "sequential"),
        help="how accelerate spreads the model over devices; null: all of it on `device`",
    )
    trust_remote_code: bool = setting(False, help="run modelling code that comes with the checkpoint")


@dataclass(kw_only=True)
class Granularity(Described):
    """Which units can be removed."""

    name: str = setting(MISSING, help="what tables and folders call it; in Python the kinds where it is not said")
    units: list[str] = choice(choices=UNITS, help="kinds of units")
    align: int | None = number(None, at_least=1, help="final widths are multiples of this; null: of anything")
    spared: list[float] = number(
        [0.0, 0.0], at_least=0, below=1, help="shares of the layers, the first and the last ones, that stay whole"
    )

    @property
    def kinds(self) -> set[str]:
        """The kinds of units; query heads are of attention, too."""
        return {"attention" if kind == "query_head" else kind for kind in self.units}

    def __post_init__(self) -> None:
        """The kinds are the name of one that was made without, in Python."""
        if self.name == MISSING and isinstance(self.units, list | tuple):
            self.name = "+".join(map(str, self.units))


@dataclass(kw_only=True)
class Budget(Described):
    """What may remain of the dense model."""

    name: str = choice("rate", choices=("rate", "params", "flops"), help="what is counted")
    keep: float = number(0.8, above=0, at_most=1, help="share of the dense model's cost that may remain")
    scope: str = choice(
        "global",
        choices=("global", "per_layer", "uniform"),
        help="one budget for all layers, the same share of each, or the same widths in each",
    )
    sequence_length: int = number(128, at_least=1, help="tokens, for the multiply-accumulates of attention")


@dataclass(kw_only=True)
class LatencyBudget(Budget):
    """The time of the transformer blocks on this machine, from a table that is measured and kept."""

    name: str = named("latency")
    batch_size: int = number(8, at_least=1, help="sequences of the timed forward passes")
    repeats: int = number(
        15, at_least=1, help="timed rounds over all widths of the table, and over dense and pruned blocks"
    )


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
    texts: list[str] = setting(
        [],
        help="other test texts for perplexity: options of `task`, files, or hub ids of data sets with a split `test`",
    )
    max_tokens: int | None = number(65536, at_least=2, help="of each test text; null: the whole test split")
    batch_tokens: int = number(2048, at_least=1, help="tokens per forward pass")
    one_shot: list[str] = choice(
        ["global", "per_layer"],
        choices=("global", "per_layer"),
        help="masks by the importance scores alone to compare with",
    )
    fresh_process: bool = setting(True, help="load the checkpoint without policyprune and measure it there")
    latency: Latency = field(default_factory=Latency)
    zero_shot: ZeroShot = field(default_factory=ZeroShot)
