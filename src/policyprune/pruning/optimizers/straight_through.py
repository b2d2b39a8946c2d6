"""The policy's gradient by back-propagation through sampled masks (straight-through estimator)."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from policyprune.config.schema import StraightThrough
from policyprune.pruning.budget.budget import Budget
from policyprune.pruning.budget.projection import project
from policyprune.pruning.budget.selection import one_shot_mask, select
from policyprune.pruning.importance.gradients import gradients_of
from policyprune.pruning.optimizers.batches import Batches
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State

FULL_RATE = 0.2  # the pruned share from which on the learning rate is what the config says


def search(problem: Problem, config: StraightThrough, report: Report, state: State = FORGETFUL) -> Found:
    """Minimise the expected loss over the keep probabilities of the channels, from the mask of the metric on.

    d E[L] / ds is estimated by the mean of dL/dm at sampled masks, one for each sequence, as if L were linear between
    m = 0 and 1: one backward pass tells something of every unit, where the loss of a mask is a single number. That
    holds for channels, which are small; heads move at `attention_rate` times the rate, with 0 they stay as the metric
    has them. Every sequence has the same weight: where a mask broke the model, slopes are tens of times as large and
    say little. Where less than FULL_RATE is pruned the learning rate is smaller in proportion: the first mask is close
    to a good one. A gradient that is not finite moves nothing. The same seed gives the same masks.
    """
    device = problem.start.device
    budget = problem.budget.to(device)
    of_heads = torch.tensor([group.kind == "attention" for group in problem.space.groups])[problem.space.group_of]
    relative = torch.where(of_heads, config.attention_rate, 1.0).to(device)
    moves = relative > 0
    first = one_shot_mask(problem.metric, problem.budget, problem.per_cost).to(device).float()
    free = budget.holding(first, ~moves) if budget.linear else budget
    highest = config.learning_rate * min(1.0, (1 - budget.keep) / FULL_RATE)

    def inside(s: Tensor) -> Tensor:
        return torch.where(moves, project(s, free, "equality"), first)

    s = inside(config.confidence * first + (1 - config.confidence) * (1 - first))
    average, step = torch.zeros_like(s), 0
    generator = torch.Generator(device).manual_seed(problem.seed)
    batches = Batches(problem, config.batch_size)
    if saved := state.load():
        s, average, step = saved["s"].to(device), saved["average"].to(device), saved["step"]
        generator.set_state(saved["generator"])
        batches.load_state_dict(saved["batches"])
    while step < config.steps:
        rows = batches.draw()
        masks = (torch.rand(len(rows), len(s), generator=generator, device=device) < s).float()
        losses, gradient = slopes(problem, masks, rows, config.backward_batch, moves)
        finite = gradient.isfinite().all() & losses.isfinite().all()
        average = torch.where(finite, config.momentum * average + (1 - config.momentum) * gradient, average)
        rate = highest * (1 + math.cos(math.pi * step / config.steps)) / 2
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
        now = {"s": s, "average": average, "step": step, "generator": generator.get_state()}
        state.save(lambda now=now: {**now, "batches": batches.state_dict()})  # type: ignore[misc]
    return Found(select(s, budget), s, config.steps, config.steps)


def slopes(problem: Problem, masks: Tensor, rows: Tensor, size: int, moves: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (B,) of sequences under a mask each, (B, n), and the mean of their slopes, (n,) float32.

    A slope is dL/dm of the units in `moves` (n,) bool, 0 elsewhere, divided by its length. Back-propagates `size`
    sequences at a time, which is what the memory for activations grows with.
    """
    parts = zip(masks.split(size), rows.split(size), strict=True)
    losses, gradients = zip(*(gradients_of(problem.evaluate, *own) for own in parts), strict=True)
    slope = torch.where(moves, torch.cat(gradients).float(), 0)
    return torch.cat(losses), functional.normalize(slope).mean(0)


def direction(gradient: Tensor, budget: Budget, moves: Tensor) -> Tensor:
    """In each segment, gradient (n,) per cost without what its units in `moves` (n,) bool have in common.

    Its root mean square over these is 1, the others get 0. What all have in common would only change the cost, which
    the projection undoes.
    """

    def total(values: Tensor) -> Tensor:
        return budget.in_lanes(torch.where(moves, values, 0)).sum(1)

    slope, cost = gradient.double(), budget.cost
    common = total(slope) / total(cost)
    left = slope / cost - common[budget.segment]
    spread = (total(left.square()) / total(torch.ones_like(cost))).sqrt()
    return torch.where(moves, left / spread.clamp(min=1e-30)[budget.segment], 0).to(gradient.dtype)
