"""Greedy removal by loss (Song et al., SLEB, ICML 2024): the unit whose removal hurts least goes first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from policyprune.config.fields import named, number, setting
from policyprune.config.schema import Config, Optimizer
from policyprune.errors import UsageError
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State

if TYPE_CHECKING:
    from torch import Tensor

    from policyprune.pruning.budget.budget import Budget


@dataclass(kw_only=True)
class Greedy(Optimizer):
    """Greedy removal by loss, a unit at a time."""

    name: str = named("greedy")
    sequences: int = number(32, at_least=1, help="calibration sequences that every trial looks at")
    batch_size: int = number(32, at_least=1, help="of them per forward pass")
    sliced: bool = setting(True, help="leave out what a mask prunes instead of multiplying it by zero")

    shares_masks: ClassVar[bool] = True
    handles_nested: ClassVar[bool] = False
    handles_hidden: ClassVar[bool] = False

    def check(self, config: Config) -> None:
        """Only few units, and costs that add up."""
        if "ffn" in config.granularity.units:
            raise UsageError(
                f"optimizer: greedy tries every unit before each removal, far too many with granularity="
                f"{config.granularity.name}; use granularity=head, sublayer or layer"
            )
        if config.budget.name == "latency":
            raise UsageError(
                "optimizer: greedy adds up costs unit by unit, which budget=latency does not; use budget=flops"
            )

    def search(self, problem: Problem, report: Report, state: State = FORGETFUL) -> Found:
        """Remove one unit at a time until the budget is met: the one without which the loss is lowest.

        Every step tries all units that may go, on the first `sequences` calibration sequences.
        """
        import torch

        device = problem.start.device
        budget = problem.budget.to(torch.device("cpu"))
        rows = torch.arange(min(self.sequences, problem.sequences))
        batches = rows[problem.lengths[rows].argsort(stable=True)].split(self.batch_size)
        mask = torch.ones(problem.space.n, dtype=torch.bool)
        forwards = step = 0
        if saved := state.load():
            mask, forwards, step = saved["mask"], saved["forwards"], saved["step"]
        while len(candidates := removable(mask, budget)):
            trials = mask.float().to(device).repeat(len(candidates), 1)
            trials[torch.arange(len(candidates)), candidates] = 0
            losses = problem.losses([(trial[None], batch) for trial in trials for batch in batches])
            forwards, step = forwards + len(losses), step + 1
            means = [of_trial.double().mean() for of_trial in torch.cat(losses).split(len(rows))]
            loss = torch.stack(means).cpu().nan_to_num(torch.inf, torch.inf)
            mask[candidates[int(loss.argmin())]] = False
            keep = float(mask.double().mean())
            report({"step": step, "forwards": forwards, "loss": float(loss.min()), "keep": keep})
            state.save({"mask": mask, "forwards": forwards, "step": step}.copy)
        return Found(mask, mask.float(), forwards)


def removable(mask: Tensor, budget: Budget) -> Tensor:
    """Kept units of mask (n,) in the pools, and in these in the segments, that cost more than their limit: (k,)."""
    import torch

    spent = torch.zeros_like(budget.limit).index_add(0, budget.segment, budget.cost * mask.double())
    pools = budget.spent(mask) > budget.pool_limit + 1e-6
    segments = spent > budget.limit + 1e-6
    return (mask & pools[budget.pool] & segments[budget.segment]).nonzero().flatten()
