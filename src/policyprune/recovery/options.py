"""The recoveries: what can be set of each. No torch here."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

from policyprune.config.fields import choice, named, number
from policyprune.config.schema import Recovery, Trained
from policyprune.errors import UsageError


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
    hidden_loss: float = number(
        0.0, at_least=0, help="weight of the distance between the hidden states of both models after each layer"
    )

    @property
    def needs_teacher(self) -> bool:
        """Whether there is anything to learn from the dense model."""
        return self.task_loss != 1 or self.hidden_loss > 0

    def task_share(self, labelled: bool) -> float:
        """Share of the task's loss."""
        return self.task_loss if self.task_loss is not None else 0.5 if labelled else 0.0


@dataclass(kw_only=True)
class Lora(Distill):
    """The same for adapters of low rank (PEFT) on the linear modules of the layers, which are merged into them.

    The weights themselves stay in their data type and have no gradients: for models that do not fit otherwise.
    """

    name: str = named("lora")
    rank: int = number(16, at_least=1, help="of the adapters")
    alpha: float | None = number(None, above=0, help="scale of the adapters, times the rank; null: twice the rank")
    dropout: float = number(0.0, at_least=0, below=1, help="of what goes into the adapters")
    task_loss: float | None = number(
        None, at_least=0, at_most=1, help="share of the task's loss; null: 0 for text, 0.5 for labelled examples"
    )
    trained: str = choice("blocks", choices=["blocks"], help="which weights")

    rate_factor: ClassVar[float] = 10.0

    def check(self) -> None:
        """UsageError without PEFT."""
        if find_spec("peft") is None:
            raise UsageError("recovery: lora needs PEFT, install it by pip install 'policyprune[lora]'")
