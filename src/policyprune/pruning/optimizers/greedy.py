"""Greedy removal by loss (Song et al., SLEB, ICML 2024): the unit whose removal hurts least goes first."""

import torch
from torch import Tensor

from policyprune.config.schema import Greedy
from policyprune.pruning.budget.budget import Budget
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State


def search(problem: Problem, config: Greedy, report: Report, state: State = FORGETFUL) -> Found:
    """Remove one unit at a time until the budget is met: the one without which the loss is lowest.

    Every step tries all units that may go, on the first `sequences` calibration sequences.
    """
    device = problem.start.device
    budget = problem.budget.to(torch.device("cpu"))
    rows = torch.arange(min(config.sequences, problem.sequences))
    slices = rows[problem.lengths[rows].argsort(stable=True)].split(config.batch_size)
    mask = torch.ones(problem.space.n, dtype=torch.bool)
    forwards = step = 0
    if saved := state.load():
        mask, forwards, step = saved["mask"], saved["forwards"], saved["step"]
    while len(candidates := removable(mask, budget)):
        trials = mask.float().to(device).repeat(len(candidates), 1)
        trials[torch.arange(len(candidates)), candidates] = 0
        losses = problem.losses([(trial[None], own) for trial in trials for own in slices])
        forwards, step = forwards + len(losses), step + 1
        means = [own.double().mean() for own in torch.cat(losses).split(len(rows))]
        found = torch.stack(means).cpu().nan_to_num(torch.inf, torch.inf)
        mask[candidates[int(found.argmin())]] = False
        keep = float(mask.double().mean())
        report({"step": step, "forwards": forwards, "loss": float(found.min()), "keep": keep})
        now = {"mask": mask, "forwards": forwards, "step": step}
        state.save(now.copy)
    return Found(mask, mask.float(), forwards)


def removable(mask: Tensor, budget: Budget) -> Tensor:
    """Kept units of mask (n,) in the pools, and in these in the segments, that cost more than their limit: (k,)."""
    spent = torch.zeros_like(budget.limit).index_add(0, budget.segment, budget.cost * mask.double())
    pools = budget.spent(mask) > budget.pool_limit + 1e-6
    segments = spent > budget.limit + 1e-6
    return (mask & pools[budget.pool] & segments[budget.segment]).nonzero().flatten()
