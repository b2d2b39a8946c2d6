"""One dataclass per config group: what can be set. The values are in conf/, the file names there are the choices."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from policyprune.config.fields import SEEDS, choice, number, size
from policyprune.config.schema.evaluation import Evaluation, Latency, ZeroShot
from policyprune.config.schema.search import (
    PPO,
    BiasCompensation,
    Calibrated,
    Evolution,
    Given,
    Greedy,
    Gumbel,
    Kwon,
    LeastSquares,
    OneShot,
    Optimizer,
    PolicyGradient,
    Reconstruct,
    StraightThrough,
    Tuning,
)
from policyprune.config.schema.task import (
    Calibration,
    Classification,
    Examples,
    Labelled,
    LanguageModeling,
    QuestionAnswering,
    Task,
)

__all__ = [
    "PPO",
    "SCHEMAS",
    "Applying",
    "BiasCompensation",
    "Budget",
    "Calibrated",
    "Calibration",
    "Classification",
    "Config",
    "Evaluating",
    "Evaluation",
    "Evolution",
    "Examples",
    "Export",
    "Exporting",
    "Finetuning",
    "Given",
    "Granularity",
    "Greedy",
    "Gumbel",
    "Importance",
    "Kwon",
    "Labelled",
    "LanguageModeling",
    "Latency",
    "LatencyBudget",
    "LeastSquares",
    "Model",
    "OneShot",
    "Optimizer",
    "PolicyGradient",
    "QuestionAnswering",
    "Reconstruct",
    "Safety",
    "StraightThrough",
    "Task",
    "Tracker",
    "Training",
    "Tuning",
    "Wandb",
    "ZeroShot",
]


@dataclass
class Model:
    """Where the dense model comes from and how it is held."""

    name: str = MISSING
    source: str = MISSING  # hub id, local directory, pkg://package/path, or a .gguf file in any of these
    fine_tuned: dict[str, str] | None = field(default_factory=dict)  # task -> source, where `for_task` looks
    revision: str | None = MISSING
    device: str = MISSING  # auto, cpu, cuda, cuda:1, ...
    dtype: str = choice("auto", "float32", "bfloat16", "float16")
    search_dtype: str = choice("auto", "float32", "bfloat16", "float16")  # of the search's forward passes
    attn_implementation: str = choice("auto", "sdpa", "eager", "flash_attention_2", "flex_attention")
    device_map: str | None = choice("auto", "balanced", "balanced_low_0", "sequential")
    trust_remote_code: bool = MISSING


@dataclass
class Granularity:
    """Which units can be removed."""

    name: str = MISSING
    units: list[str] = choice("attention", "ffn", "attention_block", "ffn_block", "layer", "hidden")
    align: int | None = number(at_least=1)  # final widths are multiples of this
    spared: list[float] = number(at_least=0, below=1)  # shares of the layers, first and last ones, that stay whole


@dataclass
class Budget:
    """What may remain of the dense model."""

    name: str = choice("rate", "params", "flops")
    keep: float = number(above=0, at_most=1)
    scope: str = choice("global", "per_layer", "uniform")
    sequence_length: int = number(at_least=1)  # tokens, for the multiply-accumulates of attention


@dataclass
class LatencyBudget(Budget):
    """The time of the transformer blocks on this machine, from a table that is measured and kept."""

    name: str = choice("latency")
    batch_size: int = number(at_least=1)
    repeats: int = number(at_least=1)  # timed rounds over all widths of the table, and over dense and pruned blocks


@dataclass
class Importance:
    """A score per unit, and how it becomes the initial keep probability."""

    name: str = choice("wanda_sp", "magnitude", "random", "constant", "fisher", "taylor", "flap", "block_influence")
    sequences: int = number(at_least=1)  # calibration sequences that the metric looks at
    gradient_per: str = choice("example", "batch")  # fisher, taylor: whose gradient is squared or made absolute
    per_cost: bool = MISSING  # one-shot masks take the units with the most score per cost, or with the most score
    mapping: str = choice("sigmoid_norm", "norm", "score_const")
    normalize: str = choice("per_layer", "global")
    confidence: float = number(above=0.5, below=1)  # score_const: s of the units that the metric keeps


@dataclass
class Export:
    """How the pruned model is written: `export=[hf,onnx]` merges the options, so each of them sets its own switch."""

    name: str = choice("hf", "onnx", "gguf", "none")
    hf: bool = False
    onnx: bool = False
    gguf: bool = False
    max_shard_size: str = size()  # of the safetensors files
    gguf_dtype: str = choice("f32", "f16", "q8_0")

    @property
    def formats(self) -> list[str]:
        """The formats to write."""
        return [name for name in ("hf", "onnx", "gguf") if getattr(self, name)]


@dataclass
class Tracker:
    """Base of the trackers; the local record is the truth with any of them."""

    name: str = choice("wandb", "tensorboard", "none")


@dataclass
class Wandb(Tracker):
    """Weights & Biases."""

    project: str = MISSING
    entity: str | None = MISSING
    mode: str = choice("online", "offline", "disabled", "shared")
    group: str | None = MISSING
    job_type: str = MISSING
    tags: list[str] = MISSING


@dataclass
class Safety:
    """What keeps the work of a search; none of it changes what is found."""

    save_seconds: float | None = number(at_least=0)  # between two saves of the search's state; null: not by time
    save_steps: int | None = number(at_least=1)  # the same in steps; null: not by steps
    max_skipped: int = number(at_least=0)  # masks whose loss is NaN or infinite; more of them end the run


@dataclass
class Config:
    """One run: model x task x granularity x budget x optimizer, and what they lean on."""

    model: Model = MISSING
    task: Task = MISSING
    granularity: Granularity = MISSING
    budget: Budget = MISSING
    importance: Importance = MISSING
    optimizer: Optimizer = MISSING
    tuning: Tuning = MISSING
    evaluation: Evaluation = MISSING
    export: Export = MISSING
    tracker: Tracker = MISSING
    safety: Safety = field(default_factory=Safety)
    method: str | None = MISSING  # names the row of a table; set by the options of the group `method`
    seed: int = number(at_least=0, at_most=SEEDS)
    force: bool = MISSING  # run again although a finished record of the same config is there


@dataclass
class Training:
    """How a fine-tuned checkpoint is made."""

    learning_rate: float = number(above=0)
    batch_size: int = number(at_least=1)
    epochs: float = number(above=0)
    warmup: float = number(at_least=0, below=1)  # share of the steps
    weight_decay: float = number(at_least=0)


@dataclass
class Finetuning:
    """One fine-tuning: model x task."""

    model: Model = MISSING
    task: Task = MISSING
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = MISSING
    seed: int = number(at_least=0, at_most=SEEDS)
    force: bool = MISSING


@dataclass
class Evaluating:
    """One evaluation of a checkpoint, whoever made it."""

    model: Model = MISSING
    task: Task = MISSING
    evaluation: Evaluation = MISSING
    state: str | None = MISSING  # digest of the weight files, so that changed ones are measured again
    recorded_bos: str | None = choice("none", "text", "window")  # what task.bos=auto was in the run; null: measured
    sequence_length: int = number(at_least=1)  # tokens, for the multiply-accumulates of attention
    seed: int = number(at_least=0, at_most=SEEDS)
    force: bool = MISSING


@dataclass
class Exporting:
    """One export of a run or a checkpoint."""

    model: Model = MISSING
    run: str | None = MISSING  # the folder, where a run is exported
    format: str = choice("hf", "onnx", "gguf", "plan")
    dtype: str | None = choice("f32", "f16", "bf16", "q8_0")
    output: str | None = MISSING
    max_shard_size: str = size()


@dataclass
class Applying:
    """One plan, laid on a dense model."""

    model: Model = MISSING
    plan: str = MISSING
    output: str | None = MISSING
    max_shard_size: str = size()


SCHEMAS: dict[str, Any] = {
    "config": Config,
    "finetune": Finetuning,
    "evaluate": Evaluating,
    "export": Exporting,
    "apply": Applying,
    "model/base": Model,
    "task/language_modeling": LanguageModeling,
    "task/classification": Classification,
    "task/question_answering": QuestionAnswering,
    "granularity/base": Granularity,
    "budget/base": Budget,
    "budget/latency": LatencyBudget,
    "importance/base": Importance,
    "optimizer/one_shot": OneShot,
    "optimizer/policy_gradient": PolicyGradient,
    "optimizer/kwon": Kwon,
    "optimizer/ppo": PPO,
    "optimizer/evolution": Evolution,
    "optimizer/gumbel": Gumbel,
    "optimizer/straight_through": StraightThrough,
    "optimizer/given": Given,
    "optimizer/greedy": Greedy,
    "tuning/none": Tuning,
    "tuning/least_squares": LeastSquares,
    "tuning/bias_compensation": BiasCompensation,
    "tuning/reconstruct": Reconstruct,
    "evaluation/base": Evaluation,
    "export/base": Export,
    "tracker/none": Tracker,
    "tracker/wandb": Wandb,
}
