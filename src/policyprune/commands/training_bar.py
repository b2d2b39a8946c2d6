"""The progress of a training, as our own bar shows it."""

from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from policyprune.progress import bar


class TrainingBar(TrainerCallback):
    """A bar of all steps, with the loss that the trainer logs."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._done = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Show it, from where the training goes on."""
        self._bar = self._stack.enter_context(bar(state.max_steps, "training", "step"))
        self.on_step_end(args, state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        """Move it on."""
        self._bar.update(state.global_step - self._done)
        self._done = state.global_step

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **others: Any
    ) -> None:
        """The mean loss since it was told last."""
        if logs and "loss" in logs:
            self._bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Leave it on the screen."""
        self._stack.close()
