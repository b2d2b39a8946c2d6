"""The dense model, which of its units can go, and what may remain."""

from dataclasses import dataclass

from policyprune.config.fields import choice, named, number, setting

UNITS = ("attention", "ffn", "attention_block", "ffn_block", "layer", "hidden")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(kw_only=True)
class Model:
    """Where the dense model comes from and how it is held."""

    name: str = setting(help="what tables and folders call it")
    source: str = setting(help="hub id, local directory, pkg://package/path, or a .gguf file in any of these")
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
class Granularity:
    """Which units can be removed."""

    name: str = setting(help="what tables and folders call it")
    units: list[str] = choice(choices=UNITS, help="kinds of units")
    align: int | None = number(None, at_least=1, help="final widths are multiples of this; null: of anything")
    spared: list[float] = number(
        [0.0, 0.0], at_least=0, below=1, help="shares of the layers, the first and the last ones, that stay whole"
    )


@dataclass(kw_only=True)
class Budget:
    """What may remain of the dense model."""

    name: str = choice(choices=("rate", "params", "flops"), help="what is counted")
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
