"""One dataclass per config group: what can be set, its default, its meaning and its range. No torch here.

The classes of single optimizers, importances and tunings stand beside their code; `config/registry.py` lists them.
"""

from policyprune.config.schema.inputs import (
    Budget,
    Calibration,
    Classification,
    Evaluation,
    Examples,
    Granularity,
    Labelled,
    LanguageModeling,
    Latency,
    LatencyBudget,
    Model,
    QuestionAnswering,
    Task,
    ZeroShot,
)
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
