"""The mask of another run, to compare tunings, evaluations or exports without another search."""

from pathlib import Path

import torch
from torch import Tensor

from policyprune.config.schema import Given
from policyprune.errors import UsageError
from policyprune.pruning.budget.budget import Budget
from policyprune.pruning.mask_file import load_mask
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State
from policyprune.pruning.space import Space
from policyprune.storage.record_file import MASK_FILE


def search(problem: Problem, config: Given, report: Report, state: State = FORGETFUL) -> Found:
    """Take the mask (n,) that a run left in its folder."""
    mask = mask_of(config, problem.space, problem.budget.to(torch.device("cpu")))
    return Found(mask, mask.float(), forwards=0)


def mask_of(config: Given, space: Space, budget: Budget) -> Tensor:
    """The mask (n,) of the run; UsageError where it is damaged, of other units than `space`, or beyond the budget."""
    own, mask = load_mask(Path(config.folder).expanduser() / MASK_FILE, "optimizer.folder")
    if own != space:
        raise UsageError(f"optimizer.folder: the mask in {config.folder!r} is not of this model's units or granularity")
    if bool((budget.spent(mask) > budget.pool_limit * (1 + 1e-9)).any()):
        keep = f"budget.keep={budget.keep:g}"
        raise UsageError(f"optimizer.folder: the mask in {config.folder!r} keeps more than {keep} allows")
    return mask
