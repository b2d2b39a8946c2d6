"""Evolutionary search: masks within the budget are varied, and the better ones kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from policyprune.config.fields import named, number, setting
from policyprune.config.schema import Config, Stepwise
from policyprune.errors import UsageError
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from policyprune.pruning.budget.budget import Budget


@dataclass(kw_only=True)
class Evolution(Stepwise):
    """Evolutionary search over masks within the budget.

    By default it takes as many forward passes as optimizer=policy_gradient: 12 x 12 + 4 x 4.
    """

    name: str = named("evolution")
    steps: int = number(12, at_least=1, help="generations")
    population: int = number(12, at_least=2, help="masks, and forward passes, per generation")
    parents: int = number(4, at_least=1, help="masks that stay")
    mutation: float = number(0.05, above=0, below=1, help="share of the kept units that a mutation exchanges")
    final_batches: int = number(4, at_least=1, help="on which the last parents are compared")
    sliced: bool = setting(True, help="leave out what a mask prunes instead of multiplying it by zero")

    shares_masks: ClassVar[bool] = True

    def check(self, config: Config) -> None:
        """Some of the population are children."""
        super().check(config)
        if self.parents >= self.population:
            raise UsageError(
                f"optimizer.parents: {self.parents} leaves no place for children in optimizer.population="
                f"{self.population}"
            )

    def search(self, problem: Problem, report: Report, state: State = FORGETFUL) -> Found:
        """Begin with the most probable units that fit; return the best of the last parents.

        A step draws a batch and evaluates every mask of the population on it, one forward pass each. The `parents` with
        the lowest loss stay, children of two of them, mutated, take the places of the others. In the end the parents
        are compared on `final_batches` fresh batches. The probabilities are the shares of these parents that keep a
        unit.
        """
        import torch

        from policyprune.pruning.budget.selection import select
        from policyprune.pruning.optimizers.batches import Batches

        device = problem.start.device
        budget = problem.budget.to(torch.device("cpu"))
        start = problem.start.detach().cpu().double().clamp(1e-4, 1 - 1e-4)
        generator = torch.Generator().manual_seed(problem.seed)
        batches = Batches(problem, self.batch_size)
        forwards = begin = 0

        def losses_of(masks: Tensor, rows: Tensor) -> Tensor:
            nonlocal forwards
            forwards += len(masks)
            jobs = [(mask[None], rows) for mask in masks.float().to(device)]
            losses = torch.stack([of_mask.mean() for of_mask in problem.losses(jobs)])
            return losses.double().cpu().nan_to_num(torch.inf, torch.inf)

        first = select(start, budget)
        parents = first[None]
        children = [mutated(first, start, self.mutation, budget, generator) for _ in range(self.population - 1)]
        if saved := state.load():
            parents, children = saved["parents"], list(saved["children"])
            forwards, begin = saved["forwards"], saved["step"]
            generator.set_state(saved["generator"])
            batches.load_state_dict(saved["batches"])
        for step in range(begin, self.steps):
            masks = torch.stack([*parents, *children])
            losses = losses_of(masks, batches.draw())
            order = losses.argsort(stable=True)
            parents = masks[order[: self.parents]]
            values = {"loss": float(losses.mean()), "best_loss": float(losses[order[0]])}
            keep = float(parents.double().mean())
            report({"step": step + 1, "forwards": forwards, **values, "keep": keep})
            children = []
            for _ in range(self.population - len(parents)):
                mother, father = parents[torch.randint(len(parents), (2,), generator=generator)]
                child = crossed(mother, father, budget, generator)
                children.append(mutated(child, start, self.mutation, budget, generator))
            masks_and_step = {"parents": parents, "children": children, "forwards": forwards, "step": step + 1}
            position = {"generator": generator.get_state(), "batches": batches.state_dict()}
            state.save((masks_and_step | position).copy)
        total = torch.zeros(len(parents), dtype=torch.float64)
        for _ in range(self.final_batches):
            total += losses_of(parents, batches.draw())
        return Found(parents[int(total.argmin())], parents.float().mean(0), forwards)


def crossed(mother: Tensor, father: Tensor, budget: Budget, generator: torch.Generator) -> Tensor:
    """A mask (n,) that keeps what both keep, and of what one of them keeps, at random, as much as fits."""
    from policyprune.pruning.budget.selection import select

    return select(mother.double() + father.double() + _uniform(len(mother), generator), budget)


def mutated(mask: Tensor, start: Tensor, share: float, budget: Budget, generator: torch.Generator) -> Tensor:
    """A mask (n,) with about `share` of its kept units exchanged for pruned ones.

    What goes and what comes is drawn by the initial keep probabilities `start` (n,): logit(start) and logistic noise.
    """
    import torch

    from policyprune.pruning.budget.selection import select

    noise = _uniform(len(mask), generator).clamp(min=1e-12)
    luck = torch.sigmoid(start.logit() + noise.logit())
    kept = mask.nonzero().flatten()
    victims = kept[luck[kept].argsort(stable=True)[: max(1, round(share * len(kept)))]]
    order = torch.where(mask, 2.0, 1.0 + luck)
    order[victims] = luck[victims]
    return select(order, budget)


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    import torch

    return torch.rand(n, generator=generator, dtype=torch.float64)
