"""What searches over widths of blocks share: options, and losses that are measured once and outlive an interruption."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import TYPE_CHECKING, ClassVar

from policyprune.config.fields import choice, number
from policyprune.config.schema import Config, Optimizer
from policyprune.errors import UsageError
from policyprune.pruning.optimizers.problem import Found, Problem, Report, State

if TYPE_CHECKING:
    from torch import Tensor

    from policyprune.pruning.optimizers.levels.widths import Widths

LOSS = "that is minimised: divergence from the dense model, or the task's own"


@dataclass(kw_only=True)
class LevelSearch(Optimizer):
    """Base of the searches over widths of blocks; which units of a block go is the importance's order.

    Masks are tried with the least-squares weights of the units that they keep.
    """

    levels: int = number(24, at_least=2, help="widths of a block to choose from, at most")
    loss: str = choice("divergence", choices=("divergence", "task"), help=LOSS)

    refits: ClassVar[bool] = True
    handles_nested: ClassVar[bool] = False
    handles_hidden: ClassVar[bool] = False

    @property
    def imitates(self) -> bool:
        """Whether its loss is the divergence from the dense model."""
        return self.loss == "divergence"

    @property
    def sliced(self) -> bool:
        """Always: what a mask prunes is left out."""
        return True

    def check(self, config: Config) -> None:
        """Widths can be chosen only where a budget leaves them open."""
        if config.budget.scope != "global":
            raise UsageError(
                f"optimizer: {self.name} chooses the widths of blocks, budget.scope={config.budget.scope} has chosen "
                "them; use optimizer=one_shot or budget.scope=global"
            )


class Losses:
    """Losses of widths on calibration sequences, each measured once.

    They are all the state of a search over widths. One that goes on takes its steps again, draws what it drew, and
    gets the losses that it got, until it comes to what is new.
    """

    def __init__(self, problem: Problem, levels: int, report: Report, state: State) -> None:
        import torch

        from policyprune.pruning.optimizers.levels.widths import Widths

        self._problem, self._report, self._state = problem, report, state
        budget, scores = problem.budget.to(torch.device("cpu")), problem.importance.detach().cpu()
        self.widths: Widths = Widths.of(problem.space, scores, budget, levels)
        self.generator = torch.Generator().manual_seed(problem.seed)
        saved = state.load() or {"losses": {}, "step": 0}
        self._before: dict[str, float] = saved["losses"]
        self._told: int = saved["step"]
        self._measured: dict[str, float] = {}
        self._step = self._round = 0

    @property
    def forwards(self) -> int:
        """How many losses were measured."""
        return len(self._measured)

    def draw(self, count: int) -> Tensor:
        """So many calibration sequences, or all: rows (count,)."""
        import torch

        return torch.randperm(self._problem.sequences, generator=self.generator)[:count]

    def of(self, tried: Sequence[Sequence[int]], rows: Tensor) -> list[float]:
        """Mean loss on `rows` with so many units of each block; infinite where that of a sequence is NaN or infinite.

        What was measured before is not measured again.
        """
        import torch

        place = rows.tolist()
        names = [hashlib.sha256(repr((self._round, list(counts), place)).encode()).hexdigest()[:32] for counts in tried]
        self._measured |= {name: self._before[name] for name in names if name in self._before}
        new = {name: counts for name, counts in zip(names, tried, strict=True) if name not in self._measured}
        if new:
            masks = [self.widths.mask(counts).float()[None].to(self._problem.start.device) for counts in new.values()]
            losses = self._problem.losses([(mask, rows) for mask in masks])
            means = torch.stack([of_mask.double().mean() for of_mask in losses]).nan_to_num(
                math.inf, math.inf, math.inf
            )
            self._measured.update(zip(new, means.tolist(), strict=True))
        return [self._measured[name] for name in names]

    def renew(self, counts: Sequence[int], levels: int) -> None:
        """Gather statistics anew behind layers of these widths; order, weights and losses are by them from now on."""
        from policyprune.pruning.optimizers.levels.widths import Widths

        assert self._problem.behind is not None
        scores = self._problem.behind(self.widths.mask(counts))
        self.widths = Widths.of(self._problem.space, scores, self.widths.budget, levels)
        self._round += 1

    def over(self, tried: Sequence[Sequence[int]], parts: Sequence[Tensor]) -> list[float]:
        """The same on many sequences, so many (B,) at a time."""
        each = [self.of(tried, rows) for rows in parts]
        sizes = [len(rows) for rows in parts]
        return [sum(map(mul, of_one, sizes)) / sum(sizes) for of_one in zip(*each, strict=True)]

    def tell(self, values: dict[str, Tensor | float]) -> None:
        """End a step with these numbers."""
        self._step += 1
        if self._step > self._told:
            self._report({"step": self._step, "forwards": self.forwards, **values})
            self._state.save(lambda: {"losses": dict(self._measured), "step": self._step})

    def keep(self, counts: Sequence[int]) -> float:
        """Share of all units that stay."""
        return sum(counts) / self._problem.space.n

    def found(self, counts: Sequence[int]) -> Found:
        """The result of the search."""
        mask = self.widths.mask(counts)
        return Found(mask, mask.float(), self.forwards)
