"""Mask learning by back-propagation through the binary concrete distribution (Gumbel-softmax of two classes)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from policyprune.config.fields import named, number, setting
from policyprune.config.schema import Stepwise
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State

if TYPE_CHECKING:
    from torch import Tensor

    from policyprune.pruning.budget.budget import Budget

EDGE = 1e-3  # logits are taken of probabilities at least this far from 0 and 1


@dataclass(kw_only=True)
class Gumbel(Stepwise):
    """Mask learning by back-propagation through the binary concrete distribution."""

    name: str = named("gumbel")
    steps: int = number(80, at_least=1, help="steps of the search")
    masks: int = number(
        2, at_least=1, help="forward and backward passes per step, a mask for each sequence in each of them"
    )
    learning_rate: float = number(
        0.03, above=0, help="root mean square change of the keep probabilities in the first step"
    )
    temperature: float = number(1.0, above=0, help="of the relaxed masks, at the start")
    final_temperature: float = number(0.2, above=0, help="the same at the end")
    straight_through: bool = setting(True, help="binary masks in the forward pass, relaxed ones in the backward pass")

    back_propagates: ClassVar[bool] = True
    handles_nested: ClassVar[bool] = False

    def search(self, problem: Problem, report: Report, state: State = FORGETFUL) -> Found:
        """Minimise the expected loss over the keep probabilities, then keep the most probable units that fit.

        A step draws `masks` relaxed masks for each sequence, takes as many forward and backward passes, and moves the
        probabilities along the budget against the gradient. The temperature falls geometrically, the step size as a
        cosine. A gradient that is not finite moves nothing. The same seed gives the same masks.
        """
        import torch

        from policyprune.pruning.budget.projection import project
        from policyprune.pruning.budget.selection import select
        from policyprune.pruning.optimizers.batches import Batches

        s = problem.start.clone()
        device = s.device
        budget = problem.budget.to(device)
        generator = torch.Generator(device).manual_seed(problem.seed)
        batches = Batches(problem, self.batch_size)
        begin = 0
        if saved := state.load():
            s, begin = saved["s"].to(device), saved["step"]
            generator.set_state(saved["generator"])
            batches.load_state_dict(saved["batches"])
        for step in range(begin, self.steps):
            rows, progress = batches.draw(), step / self.steps
            temperature = self.temperature * (self.final_temperature / self.temperature) ** progress
            rate = self.learning_rate * (1 + math.cos(math.pi * progress)) / 2
            inside = s.clamp(EDGE, 1 - EDGE)
            logits = inside.logit().requires_grad_()
            total, gradient = torch.zeros((), device=device), torch.zeros_like(s)
            for _ in range(self.masks):
                uniform = torch.rand(len(rows), problem.space.n, generator=generator, device=device)
                with torch.enable_grad():
                    masks = relaxed(logits, uniform, temperature, self.straight_through)
                    loss = problem.evaluate(masks, rows).mean()
                (slope,) = torch.autograd.grad(loss, logits)
                total, gradient = total + loss.detach() / self.masks, gradient + slope / self.masks
            finite = gradient.isfinite().all()
            direction = along(gradient / (inside * (1 - inside)).sqrt(), budget)
            s = torch.where(finite, project(s - rate * direction, budget, "equality"), s)
            report(
                {
                    "step": step + 1,
                    "forwards": (step + 1) * self.masks,
                    "loss": total,
                    "keep": s.mean(),
                    "gradient_norm": gradient.norm(),
                    "undecided": ((s > 0.05) & (s < 0.95)).float().mean(),
                    "temperature": temperature,
                    "learning_rate": rate,
                    "skipped": (~finite).float(),
                }
            )
            position = {"generator": generator.get_state(), "batches": batches.state_dict()}
            state.save({"s": s, "step": step + 1, **position}.copy)
        return Found(select(s, budget), s, self.steps * self.masks, self.steps * self.masks)


def along(gradient: Tensor, budget: Budget) -> Tensor:
    """In each segment, the part of a gradient (n,) that leaves the cost as it is, with a root mean square of 1.

    The rest is a step that the projection would undo, and heads and channels have gradients of different size.
    """
    import torch

    cost, segment = budget.cost.to(gradient.dtype), budget.segment
    zeros = torch.zeros(len(budget.limit), dtype=gradient.dtype, device=gradient.device)
    share = zeros.index_add(0, segment, cost * gradient) / zeros.index_add(0, segment, cost * cost)
    left = gradient - cost * share[segment]
    sizes = torch.bincount(segment, minlength=len(zeros))
    spread, whole = ((zeros.index_add(0, segment, x.square()) / sizes).sqrt() for x in (left, gradient))
    return torch.where((spread > 1e-6 * whole)[segment], left / spread[segment], 0)  # no step where all is rounding


def relaxed(logits: Tensor, uniform: Tensor, temperature: float, straight_through: bool) -> Tensor:
    """Masks (M, n) in (0, 1): sigmoid((logits (n,) + logistic noise) / temperature), uniform (M, n) in [0, 1).

    They are above 1/2 with probability sigmoid(logits). `straight_through` rounds them, and leaves their gradients.
    """
    import torch

    tiny = torch.finfo(uniform.dtype).eps
    soft = torch.sigmoid((logits + uniform.clamp(tiny, 1 - tiny).logit()) / temperature)
    return soft + (soft.round() - soft).detach() if straight_through else soft
