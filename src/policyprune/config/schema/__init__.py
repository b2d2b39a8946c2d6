"""One dataclass per config group: what can be set, its default, its meaning and its range. No torch here.

The classes of single optimizers, importances and tunings stand beside their code; `config/registry.py` lists them.
"""

from policyprune.config.schema.evaluation import Evaluation, Latency, ZeroShot
from policyprune.config.schema.model import Budget, Granularity, LatencyBudget, Model
from policyprune.config.schema.run import (
    Calibrated,
    Config,
    Export,
    Importance,
    Optimizer,
    Safety,
    Stepwise,
    Tracker,
    Tuning,
    Wandb,
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
from policyprune.config.schema.verbs import Applying, Evaluating, Exporting, Finetuning, Training

__all__ = [
    "Applying",
    "Budget",
    "Calibrated",
    "Calibration",
    "Classification",
    "Config",
    "Evaluating",
    "Evaluation",
    "Examples",
    "Export",
    "Exporting",
    "Finetuning",
    "Granularity",
    "Importance",
    "Labelled",
    "LanguageModeling",
    "Latency",
    "LatencyBudget",
    "Model",
    "Optimizer",
    "QuestionAnswering",
    "Safety",
    "Stepwise",
    "Task",
    "Tracker",
    "Training",
    "Tuning",
    "Wandb",
    "ZeroShot",
]
