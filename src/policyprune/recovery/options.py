"""The recoveries: what can be set of each. No torch here."""

from dataclasses import dataclass
from typing import ClassVar

from policyprune.config.fields import named, number
from policyprune.config.schema import Recovery, Trained


@dataclass(kw_only=True)
class NoRecovery(Recovery):
    """Nothing is trained."""

    name: str = named("none")


@dataclass(kw_only=True)
class Finetune(Trained):
    """The task's own loss: next tokens, classes, answers."""

    name: str = named("finetune")


@dataclass(kw_only=True)
class Distill(Trained):
    """The divergence from what the dense model predicts, KL(dense || smaller), and the task's loss beside it."""

    name: str = named("distill")
    temperature: float = number(1.0, above=0, help="that both logits are divided by; the loss is scaled by its square")
    task_loss: float | None = number(
        None, at_least=0, below=1, help="share of the task's loss; null: 0 for text, 0.5 for labelled examples"
    )

    needs_teacher: ClassVar[bool] = True

    def task_share(self, labelled: bool) -> float:
        """Share of the task's loss."""
        return self.task_loss if self.task_loss is not None else 0.5 if labelled else 0.0
