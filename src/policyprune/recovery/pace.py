"""How far a training is: what its learning rate is, when it is judged and saved, and when it ends."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from policyprune.config.schema import Trained

Report = Callable[[dict[str, float], int], None]  # of values at a step


class Pace(TrainerCallback):
    """Counts steps, tokens and seconds against their limits; `share` of the training is done, by the limit next to its
    end.

    Seconds count from when this object was made, those of earlier processes before. They leave room for the last
    held-out loss. Several processes go by the clock of the first one.
    """

    def __init__(self, options: Trained, report: Report) -> None:
        self._options, self._report = options, report
        self._steps, self._tokens, self._seconds = options.limits
        self._began = time.perf_counter()
        self._paused, self._pause = self._began, 0.0  # when the last held-out loss began, and how long it takes
        self._judged = 0
        self.share = 0.0

    @property
    def seconds(self) -> float:
        """Spent so far."""
        return time.perf_counter() - self._began

    def go_on(self, state: TrainerState) -> None:
        """Begin where an earlier process saved its work."""
        row = judgements(state)[-1]
        self._began -= row["seconds"]
        self.share = row["share"]
        self._judged = self._due

    def rate(self, steps: int, tokens: int, device: torch.device) -> float:
        """Share of the highest learning rate after some steps and tokens: a line upwards, then one down to 0."""
        shares = [steps / (self._steps or math.inf), tokens / (self._tokens or math.inf)]
        if self._seconds is not None:
            shares.append(_of_first(self.seconds / max(self._seconds - self._pause, 1e-3), device))
        self.share = min(1.0, max(shares))
        warmup = self._options.warmup
        return self.share / warmup if self.share < warmup else (1 - self.share) / (1 - warmup)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The first held-out loss tells how long one takes."""
        self._paused = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for the held-out loss, and for the end."""
        control.should_training_stop = self.share >= 1
        if control.should_training_stop or self._due > self._judged:
            self._judged, self._paused = self._due, time.perf_counter()
            control.should_log = control.should_evaluate = control.should_save = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Pass on the training loss."""
        if logs and "loss" in logs and state.is_world_process_zero:
            values = {name: float(logs[name]) for name in ("loss", "learning_rate")}
            self._report({**values, "tokens": float(state.num_input_tokens_seen)}, state.global_step)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note what an earlier process is gone on from; end where there was no gain for a while."""
        row = state.log_history[-1]
        row |= {"seconds": self.seconds, "share": self.share, "tokens": state.num_input_tokens_seen}
        losses = [own["eval_loss"] if math.isfinite(own["eval_loss"]) else math.inf for own in judgements(state)]
        patience = self._options.patience
        if patience is not None and len(losses) - 1 - losses.index(min(losses)) >= patience:
            control.should_training_stop = True
        row["ended"] = bool(control.should_training_stop)
        self._pause = time.perf_counter() - self._paused
        if state.is_world_process_zero:
            self._report({"held_out_loss": row["eval_loss"]}, state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The last one is saved, too."""
        self._pause = time.perf_counter() - self._paused

    @property
    def _due(self) -> int:
        return math.floor(self.share * self._options.evaluations)


def _of_first(number: float, device: torch.device) -> float:
    """The number of rank 0, where there are several processes."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return number
    told: Tensor = torch.tensor(number, device=device)
    distributed.broadcast(told, 0)
    return float(told)


def judgements(state: TrainerState) -> list[dict[str, Any]]:
    """A row for each held-out loss, the first one from before the training."""
    return [row for row in state.log_history if "eval_loss" in row]
