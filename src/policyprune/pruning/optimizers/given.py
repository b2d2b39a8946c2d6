"""The mask of another run, to compare tunings, evaluations or exports without another search."""

from pathlib import Path

from policyprune.config.schema import Given
from policyprune.errors import UsageError
from policyprune.pruning.mask import FILE, load_mask
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State


def search(problem: Problem, config: Given, report: Report, state: State = FORGETFUL) -> Found:
    """Take the mask (n,) that a run left in its folder.

    UsageError where it is of other units than this run's, or keeps more than the budget allows.
    """
    space, mask = load_mask(Path(config.folder) / FILE)
    if space != problem.space:
        raise UsageError(f"optimizer.folder: the mask in {config.folder!r} is not of this model's units or granularity")
    limit = problem.budget.pool_limit.cpu()
    if bool((problem.budget.spent(mask.to(problem.start.device)).cpu() > limit * (1 + 1e-9)).any()):
        keep = f"budget.keep={problem.budget.keep:g}"
        raise UsageError(f"optimizer.folder: the mask in {config.folder!r} keeps more than {keep} allows")
    return Found(mask, mask.float(), forwards=0)
