"""One dataclass per config group: what can be set, its default, its meaning and its range. No torch here.

The classes of single optimizers, importances and tunings stand beside their code; `config/registry.py` lists them.
"""

from policyprune.config.schema.inputs import Budget, Evaluation, Granularity, Latency, LatencyBudget, Model, ZeroShot
from policyprune.config.schema.run import (
    Calibrated,
    Config,
    Export,
    Importance,
    Optimizer,
    Recovery,
    Safety,
    Stepwise,
    Tracker,
    Trained,
    Tuning,
    Wandb,
)
from policyprune.config.schema.tasks import (
    Calibration,
    Chat,
    Classification,
    Examples,
    Generated,
    Labelled,
    LanguageModeling,
    Mixture,
    QuestionAnswering,
    Task,
    Text,
)
from policyprune.config.schema.verbs import Applying, Evaluating, Exporting, Finetuning, Recovering, Training

__all__ = [
    "Applying",
    "Budget",
    "Calibrated",
    "Calibration",
    "Chat",
    "Classification",
    "Config",
    "Evaluating",
    "Evaluation",
    "Examples",
    "Export",
    "Exporting",
    "Finetuning",
    "Generated",
    "Granularity",
    "Importance",
    "Labelled",
    "LanguageModeling",
    "Latency",
    "LatencyBudget",
    "Mixture",
    "Model",
    "Optimizer",
    "QuestionAnswering",
    "Recovering",
    "Recovery",
    "Safety",
    "Stepwise",
    "Task",
    "Text",
    "Tracker",
    "Trained",
    "Training",
    "Tuning",
    "Wandb",
    "ZeroShot",
]
