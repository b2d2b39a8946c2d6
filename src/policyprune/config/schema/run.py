"""One run: base classes of what an optimizer, an importance and the like are, and the config that holds one of each."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from policyprune.config.fields import SEEDS, Described, choice, named, number, setting, size
from policyprune.config.schema.inputs import Budget, Evaluation, Granularity, Model
from policyprune.config.schema.tasks import Task, Text
from policyprune.errors import UsageError

NAME = "which option this is"
STEPS = 128  # of a recovery without limits
SEQUENCES = "calibration sequences to look at; null: all"
PER_COST = "one-shot masks take the units with the highest score per cost, or else with the highest score"


@dataclass(kw_only=True)
class Optimizer(Described, ABC):
    """Base of the optimizers: what each can do, what can be set of it, and its search.

    The file of an optimizer is read before torch is imported, so `search` imports torch itself.
    """

    name: str = setting(help=NAME)

    shares_masks: ClassVar[bool] = False  # has masks that do not wait for one another: several processes share them
    back_propagates: ClassVar[bool] = False  # needs gradients, not forward passes alone
    refits: ClassVar[bool] = False  # tries a mask with the least-squares weights of the units that it keeps
    handles_nested: ClassVar[bool] = True  # units inside others: heads beside whole blocks, blocks beside layers
    handles_hidden: ClassVar[bool] = True  # channels of the residual stream, which belong to no layer

    @property
    def length(self) -> int | None:
        """Number of steps of the search; None where it has none, or they are not known before."""
        return None

    @property
    def sliced(self) -> bool:
        """Whether forward passes leave out what a mask prunes, instead of multiplying it by zero."""
        return False

    @property
    def imitates(self) -> bool:
        """Whether its loss is the divergence from the dense model, not the task's own."""
        return False

    def files(self) -> dict[str, str]:
        """Files that have to be there, by the key that names them."""
        return {}

    def check(self, config: "Config") -> None:
        """Raise UsageError for what in the config only this optimizer forbids."""

    @abstractmethod
    def search(self, problem: Any, report: Any, state: Any) -> Any:
        """The mask that is found: (`Problem`, `Report`, `State`) -> `Found` (pruning/optimizers/problem.py)."""


@dataclass(kw_only=True)
class Stepwise(Optimizer):
    """Base of the optimizers that take a given number of steps, each on a batch of calibration sequences."""

    steps: int = number(at_least=1, help="steps of the search")
    batch_size: int = number(8, at_least=1, help="calibration sequences per step")

    @property
    def length(self) -> int | None:
        """Number of steps of the search."""
        return self.steps

    def check(self, config: "Config") -> None:
        """A batch may not be more than there is."""
        task = config.task
        if isinstance(task, Text) and self.batch_size > task.calibration.count:
            raise UsageError(
                f"optimizer.batch_size: {self.batch_size} is more than the {task.calibration.count} sequences of "
                "task.calibration.count"
            )


@dataclass(kw_only=True)
class Importance(Described, ABC):
    """A score for each unit, and how it becomes the initial keep probability.

    The file of an importance score is read before torch is imported, so `score` imports torch itself.
    """

    name: str = setting(help=NAME)
    sequences: int | None = number(128, at_least=1, help=SEQUENCES)
    gradient_per: str = choice(
        "example", choices=("example", "batch"), help="fisher, taylor: whose gradient is squared or made absolute"
    )
    per_cost: bool = setting(True, help=PER_COST)
    mapping: str = choice(
        "sigmoid_norm",
        choices=("sigmoid_norm", "norm", "score_const"),
        help="from scores to keep probabilities: sigmoid of the standardised score, score between minimum and maximum, "
        "or `confidence` for what the score keeps",
    )
    normalize: str = choice("per_layer", choices=("per_layer", "global"), help="over which units scores are compared")
    confidence: float = number(
        0.9, above=0.5, below=1, help="mapping=score_const: keep probability of the units that the score keeps"
    )

    needs_calibration: ClassVar[bool] = True  # looks at calibration sequences
    back_propagates: ClassVar[bool] = False  # needs gradients, not forward passes alone
    handles_hidden: ClassVar[bool] = False  # channels of the residual stream, which belong to no layer

    def check(self, config: "Config") -> None:
        """Raise UsageError for what in the config only this importance forbids."""

    @abstractmethod
    def score(self, evidence: Any) -> Any:
        """Scores (n,) float32 on the CPU, of `Evidence` (pruning/importance/evidence.py). The higher, the better."""


@dataclass(kw_only=True)
class Tuning(Described):
    """What is done to the output projections of the kept units.

    The file of a tuning is read before torch is imported, so `fit` imports torch itself.
    """

    name: str = setting(help=NAME)

    handles_hidden: ClassVar[bool] = False  # a model that lost channels of the residual stream
    back_propagates: ClassVar[bool] = False  # needs gradients, not forward passes alone
    adds_biases: ClassVar[bool] = False  # to projections that have none
    chooses_strength: ClassVar[bool] = False  # kept as far as it lowers the loss of sequences it was not fitted to

    def check(self, config: "Config") -> None:
        """Raise UsageError for what in the config only this tuning forbids."""


@dataclass(kw_only=True)
class Calibrated(Tuning, ABC):
    """A tuning that looks at calibration sequences."""

    sequences: int | None = number(1024, at_least=1, help=SEQUENCES)

    chooses_strength: ClassVar[bool] = True

    @abstractmethod
    def fit(self, prunable: Any, mask: Any, lesson: Any) -> Any:
        """What changes in the units that a mask (n,) keeps, and a report of each block.

        (`PrunableModel`, mask, `Lesson`) -> `Fitted`, as tuning/teacher_student.py has them.
        """


@dataclass(kw_only=True)
class Recovery(Described):
    """How the smaller model is trained, once it is there."""

    name: str = setting(help=NAME)

    def check(self) -> None:
        """Raise UsageError for what this machine lacks."""


@dataclass(kw_only=True)
class Trained(Recovery):
    """A recovery that trains weights with transformers' Trainer, until the first of its limits is reached."""

    steps: int | None = number(None, at_least=1, help="of the optimizer; 128 where no limit is given")
    tokens: int | None = number(None, at_least=1, help="to train on, without padding")
    seconds: float | None = number(None, above=0, help="of the training, held-out losses included")
    task: str | None = setting(
        None, help="another text to train on, by its name, file or hub id; null: that of the run"
    )
    batch_size: int | None = number(
        None, at_least=1, help="sequences that a process computes at once; null: 8 of text, 32 labelled examples"
    )
    accumulate: int = number(1, at_least=1, help="batches of a step, one after the other")
    length: int = number(128, at_least=2, help="tokens of a sequence that is cut from text")
    learning_rate: float | None = number(
        None, above=0, help="of AdamW at its highest; null: by the share that was kept and the width of the model"
    )
    warmup: float = number(0.05, at_least=0, below=1, help="share of the training in which the learning rate rises")
    weight_decay: float = number(0.0, at_least=0, help="of AdamW")
    trained: str = choice("all", choices=("all", "blocks"), help="which weights; blocks: those inside the layers")
    gradient_checkpointing: bool = setting(
        False, help="compute the activations of a layer again on the way back: less memory, a third more time"
    )
    dtype: str = choice(
        "auto",
        choices=("auto", "float32", "bfloat16"),
        help="of the computation, beside weights in float32; auto: bfloat16 where the device is made for it",
    )
    held_out: int | None = number(
        None, at_least=1, help="sequences of the training data to judge by; null: 32 of text, 512 labelled examples"
    )
    evaluations: int = number(8, at_least=1, help="held-out losses on the way, after each the training is saved")
    patience: int | None = number(3, at_least=1, help="of these without a gain end the training; null: none do")

    rate_factor: ClassVar[float] = 1.0  # on the learning rate where none is chosen

    @property
    def limits(self) -> tuple[int | None, int | None, float | None]:
        """Steps, tokens and seconds."""
        given = self.steps, self.tokens, self.seconds
        return (STEPS, None, None) if given == (None, None, None) else given

    @property
    def needs_teacher(self) -> bool:
        """Whether the dense model is looked at."""
        return False

    def task_share(self, labelled: bool) -> float:
        """Share of the task's own loss in what is trained; the rest is the divergence from the dense model."""
        return 1.0

    def rate(self, keep: float, width: int) -> float:
        """The learning rate for a model of `width` hidden channels of which the share `keep` is left.

        Without a choice it is 1e-4 at 0.8 and above and 2e-4 at 0.5 and below for 576 channels; less in proportion to
        more channels.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        lost = min(1.0, max(0.0, (0.8 - keep) / 0.3))
        return float(f"{self.rate_factor * 1e-4 * (1 + lost) * min(1.0, 576 / width):.2g}")


@dataclass(kw_only=True)
class Export:
    """How the pruned model is written: `export=[hf,onnx]` merges the options, so each of them sets its own switch."""

    name: str = choice(choices=("hf", "onnx", "gguf", "none"), help=NAME)
    hf: bool = setting(False, help="a checkpoint that transformers loads")
    onnx: bool = setting(False, help="a graph for ONNX Runtime")
    gguf: bool = setting(False, help="a file for llama.cpp")
    max_shard_size: str = size("5GB", help="size of the largest safetensors file")
    gguf_dtype: str = choice("f16", choices=("f32", "f16", "q8_0"), help="of the weights in the GGUF file")

    @property
    def formats(self) -> list[str]:
        """The formats to write."""
        written = {"hf": self.hf, "onnx": self.onnx, "gguf": self.gguf}
        return [name for name, wanted in written.items() if wanted]


@dataclass(kw_only=True)
class Tracker:
    """Base of the trackers; the local record is the truth with any of them."""

    name: str = choice(choices=("none", "tensorboard"), help=NAME)


@dataclass(kw_only=True)
class Wandb(Tracker):
    """Weights & Biases."""

    name: str = named("wandb")
    project: str = setting("policyprune", help="project of Weights & Biases")
    entity: str | None = setting(None, help="user or team; null: that of the login")
    mode: str | None = choice(
        None,
        choices=("online", "offline", "disabled", "shared"),
        help="null: the environment's WANDB_MODE, offline where that is not set",
    )
    group: str | None = setting(None, help="runs that stand together; null: the name of the sweep")
    job_type: str = setting("prune", help="kind of run")
    tags: list[str] = setting([], help="words to find the run by")


@dataclass(kw_only=True)
class Safety:
    """What keeps the work of a search; none of it changes what is found."""

    save_seconds: float | None = number(30.0, at_least=0, help="between two saves of the search; null: not by time")
    save_steps: int | None = number(None, at_least=1, help="steps between two saves of the search; null: not by steps")
    max_skipped: int = number(100, at_least=0, help="masks whose loss is NaN or infinite; more of them end the run")


@dataclass(kw_only=True)
class Config:
    """One run: model x task x granularity x budget x optimizer, and what they lean on."""

    model: Model
    task: Task
    granularity: Granularity
    budget: Budget
    importance: Importance
    optimizer: Optimizer
    tuning: Tuning
    recovery: Recovery
    evaluation: Evaluation
    export: Export
    tracker: Tracker
    safety: Safety = field(default_factory=Safety)
    method: str | None = setting(None, help="names the row of a table; set by the options of the group `method`")
    seed: int = number(0, at_least=0, at_most=SEEDS, help="of all random numbers")
    force: bool = setting(False, help="run again although a finished record of the same config is there")
