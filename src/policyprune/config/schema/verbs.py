"""The verbs beside `run`: what can be set of each."""

from dataclasses import dataclass, field

from policyprune.config.fields import SEEDS, choice, number, setting, size
from policyprune.config.schema.inputs import Evaluation, Model
from policyprune.config.schema.run import Recovery, Tracker
from policyprune.config.schema.tasks import Task

FORCE = "do it again although a finished record of the same config is there"
SHARDS = "size of the largest file of a checkpoint"


@dataclass(kw_only=True)
class Training:
    """How a fine-tuned checkpoint is made."""

    learning_rate: float = number(1e-4, above=0, help="at its highest")
    batch_size: int = number(32, at_least=1, help="examples per step")
    epochs: float = number(3.0, above=0, help="passes over the examples")
    warmup: float = number(0.06, at_least=0, below=1, help="share of the steps in which the learning rate rises")
    weight_decay: float = number(0.01, at_least=0, help="of AdamW")


@dataclass(kw_only=True)
class Finetuning:
    """One fine-tuning: model x task."""

    model: Model
    task: Task
    training: Training = field(default_factory=Training)
    evaluation: Evaluation
    seed: int = number(0, at_least=0, at_most=SEEDS, help="of all random numbers")
    force: bool = setting(False, help=FORCE)


@dataclass(kw_only=True)
class Evaluating:
    """One evaluation of a checkpoint, whoever made it."""

    model: Model
    task: Task
    evaluation: Evaluation
    state: str | None = setting(None, help="digest of the weight files, so that changed ones are measured again")
    recorded_bos: str | None = choice(
        None, choices=("none", "text", "window"), help="what task.bos=auto was in the run; null: measured"
    )
    sequence_length: int = number(128, at_least=1, help="tokens, for the multiply-accumulates of attention")
    seed: int = number(0, at_least=0, at_most=SEEDS, help="of all random numbers")
    force: bool = setting(False, help=FORCE)


@dataclass(kw_only=True)
class Recovering:
    """One recovery of a checkpoint; of a run, what its tables say of it stands here, too."""

    model: Model
    task: Task
    recovery: Recovery
    evaluation: Evaluation
    tracker: Tracker
    teacher: str | None = setting(None, help="source of the dense model; null: that of the run")
    teacher_revision: str | None = setting(None, help="branch, tag or commit of it")
    pruned_by: str | None = setting(None, help="the method before, for tables")
    tuned: str | None = setting(None, help="the tuning before, for tables")
    recovered: str | None = setting(None, help="the recovery before, for tables")
    keep: float | None = number(None, above=0, at_most=1, help="share of the dense model that is left; null: not known")
    state: str | None = setting(None, help="digest of the weight files, so that changed ones are trained again")
    recorded_bos: str | None = choice(
        None, choices=("none", "text", "window"), help="what task.bos=auto was in the run; null: measured"
    )
    sequence_length: int = number(128, at_least=1, help="tokens, for the multiply-accumulates of attention")
    seed: int = number(0, at_least=0, at_most=SEEDS, help="of all random numbers")
    force: bool = setting(False, help=FORCE)


@dataclass(kw_only=True)
class Exporting:
    """One export of a run or a checkpoint."""

    model: Model
    run: str | None = setting(None, help="the folder, where a run is exported")
    format: str = choice(choices=("hf", "onnx", "gguf", "plan"), help="what is written")
    dtype: str | None = choice(
        None, choices=("f32", "f16", "bf16", "q8_0"), help="of the weights; null: the usual one of the format"
    )
    output: str | None = setting(None, help="file or folder; null: a name beside the run or the checkpoint")
    max_shard_size: str = size("5GB", help=SHARDS)


@dataclass(kw_only=True)
class Applying:
    """One plan, laid on a dense model."""

    model: Model
    plan: str = setting(help="a plan.json")
    output: str | None = setting(None, help="folder; null: a name beside the plan")
    max_shard_size: str = size("5GB", help=SHARDS)
