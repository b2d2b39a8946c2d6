"""The progress bar of a training by transformers' Trainer."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from policyprune.progress import bar


class TrainingBar(TrainerCallback):
    """A bar of all steps with the loss that the trainer logs; or of `total` of another `unit`, of which `done` says how
    many there were."""

    def __init__(
        self,
        title: str = "training",
        unit: str = "step",
        total: int | None = None,
        done: Callable[[TrainerState], int] = lambda state: state.global_step,
    ) -> None:
        self._stack = ExitStack()
        self._title, self._unit, self._total, self._done = title, unit, total, done

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show it, from where the training goes on."""
        self._bar = self._stack.enter_context(bar(self._total or state.max_steps, self._title, self._unit))
        self._bar.initial = self._bar.n = self._done(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move it on."""
        self._bar.update(self._done(state) - self._bar.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Show the mean loss since the last log, and the last held-out loss."""
        shown = {"loss": "loss", "eval_loss": "held_out"}
        self._words = getattr(self, "_words", {}) | {
            word: f"{float(logs[name]):.3f}" for name, word in shown.items() if logs and name in logs
        }
        self._bar.set_postfix(self._words, refresh=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave it on the screen."""
        self._stack.close()
