"""The policy's gradient by back-propagation through sampled masks (straight-through estimator)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from policyprune.config.fields import named, number
from policyprune.config.schema import Config, Stepwise
from policyprune.errors import UsageError
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State

if TYPE_CHECKING:
    from torch import Tensor

    from policyprune.pruning.budget.budget import Budget

FULL_RATE = 0.2  # the pruned share from which on the learning rate is what the options say


@dataclass(kw_only=True)
class StraightThrough(Stepwise):
    """The policy's gradient by back-propagation through sampled masks, from the mask of the importance scores on."""

    name: str = named("straight_through")
    steps: int = number(32, at_least=1, help="steps of the search")
    batch_size: int = number(8, at_least=1, help="calibration sequences per step, a mask for each")
    backward_batch: int = number(2, at_least=1, help="of them back-propagated at a time: what memory grows with")
    learning_rate: float = number(
        0.05, above=0, help="root mean square change of the keep probabilities in the first step"
    )
    attention_rate: float = number(
        0.0, at_least=0, help="of heads, relative to channels; 0: they stay as the scores have them"
    )
    momentum: float = number(0.9, at_least=0, below=1, help="of the averaged gradient")
    confidence: float = number(
        0.9, at_least=0.5, at_most=1, help="initial keep probability of a channel that the scores keep"
    )

    back_propagates: ClassVar[bool] = True
    handles_nested: ClassVar[bool] = False

    def check(self, config: Config) -> None:
        """Something has to move."""
        super().check(config)
        if self.attention_rate == 0 and config.granularity.kinds == {"attention"}:
            raise UsageError(
                f"optimizer.attention_rate: 0 holds all that granularity={config.granularity.name} decides on, use "
                "more, or optimizer=policy_gradient"
            )

    def search(self, problem: Problem, report: Report, state: State = FORGETFUL) -> Found:
        """Minimise the expected loss over the keep probabilities of the channels, from the mask of the scores on.

        d E[L] / ds is estimated by the mean of dL/dm at sampled masks, one for each sequence, as if L were linear
        between m = 0 and 1: one backward pass tells something of every unit, where the loss of a mask is a single
        number. That holds for channels, which are small; heads move at `attention_rate` times the rate, with 0 they
        stay as the scores have them. Every sequence has the same weight: where a mask broke the model, slopes are tens
        of times as large and say little. Where less than FULL_RATE is pruned the learning rate is smaller in
        proportion: the first mask is close to a good one. A gradient that is not finite moves nothing. The same seed
        gives the same masks.
        """
        import torch

        from policyprune.pruning.budget.projection import project
        from policyprune.pruning.budget.selection import one_shot_mask, select
        from policyprune.pruning.optimizers.batches import Batches

        device = problem.start.device
        budget = problem.budget.to(device)
        of_heads = torch.tensor([group.kind == "attention" for group in problem.space.groups])[problem.space.group_of]
        relative = torch.where(of_heads, self.attention_rate, 1.0).to(device)
        moves = relative > 0
        first = one_shot_mask(problem.importance, problem.budget, problem.per_cost).to(device).float()
        free = budget.holding(first, ~moves) if budget.linear else budget
        highest = self.learning_rate * min(1.0, (1 - budget.keep) / FULL_RATE)

        def inside(s: Tensor) -> Tensor:
            return torch.where(moves, project(s, free, "equality"), first)

        s = inside(self.confidence * first + (1 - self.confidence) * (1 - first))
        average, step = torch.zeros_like(s), 0
        generator = torch.Generator(device).manual_seed(problem.seed)
        batches = Batches(problem, self.batch_size)
        if saved := state.load():
            s, average, step = saved["s"].to(device), saved["average"].to(device), saved["step"]
            generator.set_state(saved["generator"])
            batches.load_state_dict(saved["batches"])
        while step < self.steps:
            rows = batches.draw()
            masks = (torch.rand(len(rows), len(s), generator=generator, device=device) < s).float()
            losses, gradient = slopes(problem, masks, rows, self.backward_batch, moves)
            finite = gradient.isfinite().all() & losses.isfinite().all()
            average = torch.where(finite, self.momentum * average + (1 - self.momentum) * gradient, average)
            rate = highest * (1 + math.cos(math.pi * step / self.steps)) / 2
            moved = inside(s - rate * relative * direction(average, budget, moves))
            s = torch.where(finite, moved, s)
            step += 1
            report(
                {
                    "step": step,
                    "forwards": step,
                    "loss": losses.mean(),
                    "keep": s.mean(),
                    "gradient_norm": gradient.norm(),
                    "undecided": ((s > 0.05) & (s < 0.95)).float().mean(),
                    "learning_rate": rate,
                    "skipped": (~finite).float(),
                }
            )
            position = {"s": s, "average": average, "step": step, "generator": generator.get_state()}
            state.save(lambda position=position: {**position, "batches": batches.state_dict()})  # type: ignore[misc]
        return Found(select(s, budget), s, self.steps, self.steps)


def slopes(problem: Problem, masks: Tensor, rows: Tensor, size: int, moves: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (B,) of sequences under a mask each, (B, n), and the mean of their slopes, (n,) float32.

    A slope is dL/dm of the units in `moves` (n,) bool, 0 elsewhere, divided by its length. Back-propagates `size`
    sequences at a time, which is what the memory for activations grows with.
    """
    import torch
    from torch.nn import functional

    from policyprune.pruning.importance.gradients import gradients_of

    parts = zip(masks.split(size), rows.split(size), strict=True)
    losses, gradients = zip(*(gradients_of(problem.evaluate, *part) for part in parts), strict=True)
    slope = torch.where(moves, torch.cat(gradients).float(), 0)
    return torch.cat(losses), functional.normalize(slope).mean(0)


def direction(gradient: Tensor, budget: Budget, moves: Tensor) -> Tensor:
    """In each segment, gradient (n,) per cost without what its units in `moves` (n,) bool have in common.

    Its root mean square over these is 1, the others get 0. What all have in common would only change the cost, which
    the projection undoes.
    """
    import torch

    def total(values: Tensor) -> Tensor:
        return budget.in_lanes(torch.where(moves, values, 0)).sum(1)

    slope, cost = gradient.double(), budget.cost
    common = total(slope) / total(cost)
    left = slope / cost - common[budget.segment]
    spread = (total(left.square()) / total(torch.ones_like(cost))).sqrt()
    return torch.where(moves, left / spread.clamp(min=1e-30)[budget.segment], 0).to(gradient.dtype)
