"""Without a search: the mask of the importance scores, or that of another run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from policyprune.config.fields import named, setting
from policyprune.config.schema import Config, Optimizer
from policyprune.errors import UsageError
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State
from policyprune.storage.record_file import MASK_FILE

if TYPE_CHECKING:
    from torch import Tensor

    from policyprune.pruning.budget.budget import Budget
    from policyprune.pruning.space import Space


@dataclass(kw_only=True)
class OneShot(Optimizer):
    """Prune by the importance scores alone."""

    name: str = named("one_shot")

    def search(self, problem: Problem, report: Report, state: State = FORGETFUL) -> Found:
        """Keep the units with the highest score, per cost where it is meant so; no forward pass is spent.

        Whole blocks and layers have the sum of their units' scores, so beside units they go when all of theirs do.
        """
        from policyprune.pruning.budget.selection import one_shot_mask

        return Found(one_shot_mask(problem.importance, problem.budget, problem.per_cost), problem.start, forwards=0)


@dataclass(kw_only=True)
class FromRun(Optimizer):
    """The mask of another run, to compare tunings, evaluations or exports without another search."""

    name: str = named("from_run")
    folder: str = setting(help="folder of the run that found the mask")

    def check(self, config: Config) -> None:
        """A mask of query heads does not say which of them go together in a search."""
        if "query_head" in config.granularity.units:
            raise UsageError(
                f"optimizer: from_run takes no masks of query heads, which granularity={config.granularity.name} has; "
                "policyprune apply lays a run's plan on the dense model"
            )

    def files(self) -> dict[str, str]:
        """The mask."""
        return {"optimizer.folder": f"{self.folder}/{MASK_FILE}"}

    def search(self, problem: Problem, report: Report, state: State = FORGETFUL) -> Found:
        """Take the mask (n,) that the run left in its folder."""
        import torch

        mask = self.mask(problem.space, problem.budget.to(torch.device("cpu")))
        return Found(mask, mask.float(), forwards=0)

    def mask(self, space: Space, budget: Budget) -> Tensor:
        """The mask (n,) of the run; UsageError if it is damaged, of other units than `space`, or beyond the budget."""
        from policyprune.pruning.mask_file import load_mask

        found_space, mask = load_mask(Path(self.folder).expanduser() / MASK_FILE, "optimizer.folder")
        where = f"optimizer.folder: the mask in {self.folder!r}"
        if found_space != space:
            raise UsageError(f"{where} is not of this model's units or granularity")
        if bool((budget.spent(mask) > budget.pool_limit * (1 + 1e-9)).any()):
            raise UsageError(f"{where} keeps more than budget.keep={budget.keep:g} allows")
        return mask
