"""One dataclass per config group: what can be set. The values are in conf/, the file names there are the choices."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from policyprune.config.fields import choice, number


@dataclass
class Model:
    """Where the dense model comes from and how it is held."""

    name: str = MISSING
    source: str = MISSING  # hub id, local directory, pkg://package/path, or a .gguf file in any of these
    fine_tuned: dict[str, str] = field(default_factory=dict)  # task -> source, where it is another one
    revision: str | None = MISSING
    device: str = MISSING  # auto, cpu, cuda, cuda:1, ...
    dtype: str = choice("auto", "float32", "bfloat16", "float16")
    attn_implementation: str = choice("sdpa", "eager", "flash_attention_2", "flex_attention")
    device_map: str | None = choice("auto", "balanced", "balanced_low_0", "sequential")
    trust_remote_code: bool = MISSING


@dataclass
class Calibration:
    """The sequences that the search and the metrics may look at."""

    count: int = number(at_least=1)
    length: int = number(at_least=2)  # tokens per sequence
    seed: int = number(at_least=0)


@dataclass
class Task:
    """Base of the tasks."""

    name: str = MISSING


@dataclass
class LanguageModeling(Task):
    """Next-token prediction on a corpus: calibration sequences, and a perplexity protocol."""

    source: str | None = MISSING  # hub id of a data set; null where `files` are read
    subset: str | None = MISSING
    data_files: dict[str, str] | None = MISSING  # split -> file inside the hub data set
    calibration_split: str = MISSING
    test_split: str = MISSING
    files: list[str] | None = MISSING  # .txt, .json or .jsonl (optionally .gz), paths or pkg://
    test_files: list[str] | None = MISSING  # null: a hashed share of `files` is held out
    test_fraction: float = number(above=0, below=1)
    text_column: str = MISSING
    key_column: str | None = MISSING  # what the held-out share is hashed by; null: the text itself
    separator: str = MISSING  # joins the test documents
    bos: str = choice("none", "text", "window")  # where BOS stands: nowhere, first in the whole text, in each window
    test_documents: int | None = number(at_least=1)  # null: all
    calibration: Calibration = field(default_factory=Calibration)


@dataclass
class Examples:
    """The labelled examples that the search and the metrics may look at."""

    count: int | None = number(at_least=1)  # null: all
    seed: int = number(at_least=0)


@dataclass
class Labelled(Task):
    """Base of the tasks with labelled examples; each split comes from the hub or from files."""

    source: str | None = MISSING  # hub id; null where data_files are read
    subset: str | None = MISSING
    data_files: dict[str, str] | None = MISSING  # split -> file or pkg://; used instead of the hub
    offline_files: dict[str, str] | None = MISSING  # the same, where the hub cannot be reached
    rename: dict[str, str] = MISSING  # column -> the name it gets, where a split has it
    keep_rows: dict[str, str] = MISSING  # column -> value of the rows that count, where a split has it
    calibration_split: str = MISSING
    test_splits: list[str] = MISSING
    max_length: int = number(at_least=8)  # tokens
    calibration: Examples = field(default_factory=Examples)


@dataclass
class Classification(Labelled):
    """One or two sentences and a label (GLUE and what looks like it)."""

    text_columns: list[str] = MISSING
    label_column: str = MISSING
    classes: int = number(at_least=1)  # 1: regression
    metrics: list[str] = choice("accuracy", "f1", "matthews", "pearson", "spearman")


@dataclass
class QuestionAnswering(Labelled):
    """Extractive question answering (SQuAD and what looks like it)."""

    stride: int = number(at_least=1)  # tokens that neighbouring windows of a long context share
    max_answer_length: int = number(at_least=1)  # tokens
    no_answer: bool = MISSING  # questions may have none (SQuAD 2.0)
    no_answer_threshold: float = MISSING  # added to the answer's score before it is compared with no answer
    max_questions: int | None = number(at_least=1)  # of the test split; null: all


@dataclass
class Granularity:
    """Which units can be removed."""

    name: str = MISSING
    units: list[str] = choice("attention", "ffn")


@dataclass
class Budget:
    """What may remain of the dense model."""

    name: str = choice("rate", "params", "flops")
    keep: float = number(above=0, at_most=1)
    scope: str = choice("global", "per_layer")
    sequence_length: int = number(at_least=1)  # tokens, for the multiply-accumulates of attention


@dataclass
class Importance:
    """A score per unit, and how it becomes the initial keep probability."""

    name: str = choice("wanda_sp", "magnitude", "random", "constant", "fisher", "taylor")
    sequences: int = number(at_least=1)  # calibration sequences that the metric looks at
    gradient_per: str = choice("example", "batch")  # fisher, taylor: whose gradient is squared or made absolute
    mapping: str = choice("sigmoid_norm", "norm", "score_const")
    normalize: str = choice("per_layer", "global")
    confidence: float = number(above=0.5, below=1)  # score_const: s of the units that the metric keeps


@dataclass
class Optimizer:
    """Base of the optimizers."""

    name: str = MISSING


@dataclass
class OneShot(Optimizer):
    """Prune by the metric alone."""


@dataclass
class PolicyGradient(Optimizer):
    """Bernoulli policy gradient; every field is an independent choice (docs/policy-gradient.md)."""

    steps: int = number(at_least=1)
    batch_size: int = number(at_least=1)  # sequences per step
    masks: int = number(at_least=1)  # K, forward passes per step
    mask_per: str = choice("sequence", "batch")
    score: str = choice("textbook", "released", "natural")
    baseline: str = choice("none", "moving_average", "leave_one_out", "residual")
    window: int = number(at_least=1)  # T of the moving average
    window_update: str = choice("after_use", "before_use")
    divisor: str = choice("masks", "masks_minus_one")
    attention_rate: float = number(above=0)  # learning rate of attention units, relative to that of channels
    learning_rate: float = number(above=0)
    schedule: str = choice("constant", "linear", "cosine")
    projection: str = choice("cap", "equality")
    progressive: bool = MISSING


@dataclass
class Kwon(Optimizer):
    """Fisher search and rearrangement of Kwon et al., NeurIPS 2022."""

    rearrange: bool = MISSING


@dataclass
class PPO(Optimizer):
    """Mask search by proximal policy optimisation; docs/ppom.md says what is the paper's and what is ours."""

    iterations: int = number(at_least=1)
    episodes: int = number(at_least=2)  # per iteration
    horizon: int = number(at_least=1)  # refinements of the mask in an episode
    examples: int = number(at_least=1)  # for each reward
    held_out: float = number(above=0, below=1)  # share of the calibration examples that picks the final mask
    chunk: int = number(at_least=1)  # neighbouring channels, by importance, that are decided together
    epochs: int = number(at_least=1)
    clip: float = number(above=0, below=1)
    gae_lambda: float = number(at_least=0, at_most=1)
    discount: float = number(above=0, at_most=1)
    entropy: float = number(at_least=0)  # bonus at the start, annealed to 0
    kl_stop: float = number(above=0)  # per decision
    learning_rate: float = number(above=0)
    sliced: bool = MISSING  # evaluate masks on physically smaller models, which is faster the more is pruned
    candidates: int = number(at_least=1)  # masks compared on the held-out examples, the warm start among them


@dataclass
class Tuning:
    """Real-valued scales of the kept units."""

    name: str = choice("none", "cg2", "lsmr")


@dataclass
class LeastSquares(Tuning):
    """Layer-wise least squares against the dense model's outputs."""

    sequences: int = number(at_least=1)  # calibration sequences
    damp: float = number(at_least=0)  # relative to the mean diagonal of the normal matrix
    tolerance: float = number(above=0)  # relative residual
    iterations: int = number(at_least=1)
    limit: float = number(above=0)  # a layer with a scale beyond +-limit keeps its binary mask


@dataclass
class Latency:
    """Timed forward passes of the transformer."""

    batch_sizes: list[int] = number(at_least=1)
    length: int = number(at_least=1)
    repeats: int = number(at_least=0)  # 0: not measured


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


@dataclass
class Export:
    """How the pruned model is written."""

    name: str = choice("hf", "none")
    max_shard_size: str = MISSING


@dataclass
class Tracker:
    """Base of the trackers; the local record is the truth with any of them."""

    name: str = choice("wandb", "none")


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
    seed: int = number(at_least=0)
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
    seed: int = number(at_least=0)
    force: bool = MISSING


SCHEMAS: dict[str, Any] = {
    "config": Config,
    "finetune": Finetuning,
    "model/base": Model,
    "task/language_modeling": LanguageModeling,
    "task/classification": Classification,
    "task/question_answering": QuestionAnswering,
    "granularity/base": Granularity,
    "budget/base": Budget,
    "importance/base": Importance,
    "optimizer/one_shot": OneShot,
    "optimizer/policy_gradient": PolicyGradient,
    "optimizer/kwon": Kwon,
    "optimizer/ppo": PPO,
    "tuning/none": Tuning,
    "tuning/least_squares": LeastSquares,
    "evaluation/base": Evaluation,
    "export/base": Export,
    "tracker/none": Tracker,
    "tracker/wandb": Wandb,
}
