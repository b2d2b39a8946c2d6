"""The tunings: what can be set of each, and what it does. No torch at the top."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from policyprune.config.fields import choice, named, number, setting
from policyprune.config.schema import Calibrated, Config, Tuning
from policyprune.config.schema.run import SEQUENCES
from policyprune.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from policyprune.pruning.prunable import PrunableModel
    from policyprune.pruning.second_order.least_squares import LeastSquares as Squares
    from policyprune.tuning.least_squares import NormalEquations
    from policyprune.tuning.teacher_student import Fitted, Lesson


@dataclass(kw_only=True)
class NoTuning(Tuning):
    """The kept units stay as they are."""

    name: str = named("none")

    handles_hidden: ClassVar[bool] = True


@dataclass(kw_only=True)
class LeastSquares(Calibrated):
    """Real-valued scales of the kept units, by layer-wise least squares against the dense model's outputs."""

    damp: float = number(1.0, at_least=0, help="ridge, relative to the mean diagonal of the normal matrix")
    tolerance: float = number(1e-5, above=0, help="relative residual at which the solver ends")
    iterations: int = number(200, at_least=1, help="of the solver, at most")
    limit: float = number(10.0, above=0, help="a layer with a scale beyond +-limit keeps its binary mask")

    def fit(self, prunable: PrunableModel, mask: Tensor, lesson: Lesson) -> Fitted:
        """Scales of the units that mask (n,) keeps."""
        from policyprune.tuning.least_squares import rescale

        return rescale(prunable, mask, lesson, self.scales)

    def scales(self, equations: NormalEquations, count: int) -> tuple[Tensor, dict[str, float | str]]:
        """Scales (count,) and what became of the block: solve (A^T A + damp I) r = A^T (b - A 1), scales 1 + r.

        A block keeps its binary mask where the solver finds nothing finite, a scale is beyond +-limit or the error
        would grow.
        """
        import torch

        matrix, right = equations.system()
        ones = torch.ones_like(right)
        damped = matrix + self.damp * matrix.diagonal().mean() * torch.eye(
            count, dtype=matrix.dtype, device=matrix.device
        )
        r = self.solve(damped, right - matrix @ ones)
        before = equations.error(ones)
        if r is None or not bool(r.isfinite().all()):
            return ones, {"outcome": "no solution", "error": before, "binary_error": before}
        if float((1 + r).abs().max()) > self.limit:
            return ones, {"outcome": "beyond the limit", "error": before, "binary_error": before}
        after = equations.error(1 + r)
        if not after <= before:
            return ones, {"outcome": "no gain", "error": before, "binary_error": before}
        return 1 + r, {"outcome": "tuned", "error": after, "binary_error": before}

    @abstractmethod
    def solve(self, matrix: Tensor, right: Tensor) -> Tensor | None:
        """Solve matrix (k, k) x = right (k,) in float64; None where there is no solution."""


@dataclass(kw_only=True)
class CG2(LeastSquares):
    """G-Pruner's mask tuning: conjugate gradient squared on the normal equations."""

    name: str = named("cg2")

    def solve(self, matrix: Tensor, right: Tensor) -> Tensor | None:
        """By conjugate gradient squared."""
        from policyprune.tuning.solvers import cg2

        return cg2(matrix, right, self.tolerance, self.iterations)


@dataclass(kw_only=True)
class LSMR(LeastSquares):
    """Kwon et al.'s mask tuning, by LSMR."""

    name: str = named("lsmr")

    def solve(self, matrix: Tensor, right: Tensor) -> Tensor | None:
        """By LSMR."""
        from policyprune.tuning.solvers import lsmr

        return lsmr(matrix, right, self.tolerance, self.iterations)


@dataclass(kw_only=True)
class BiasCompensation(Calibrated):
    """The mean output of the removed units becomes a bias of the output projection (FLAP)."""

    name: str = named("bias_compensation")

    adds_biases: ClassVar[bool] = True
    chooses_strength: ClassVar[bool] = False

    def fit(self, prunable: PrunableModel, mask: Tensor, lesson: Lesson) -> Fitted:
        """Biases of the blocks that lose units of mask (n,)."""
        from policyprune.tuning.bias_compensation import compensate

        return compensate(prunable, mask, lesson)


@dataclass(kw_only=True)
class Reconstruct(Calibrated):
    """New output projections for the kept units, by layer-wise least squares against the dense model's outputs."""

    name: str = named("reconstruct")
    sequences: int | None = number(None, at_least=1, help=SEQUENCES)
    ridge: list[float] = number(
        [0.01, 0.1, 1.0, 10.0],
        at_least=0,
        help="relative to the mean diagonal of the normal matrix; of several each block takes its best on tokens held "
        "out",
    )
    residual: float = number(
        0.75,
        at_least=0,
        at_most=1,
        help="share of what earlier blocks lost that a block is to make up for; it is 0 in layers that norm or scale "
        "what they add, and 1 where a norm follows the sum",
    )
    reselect: bool = setting(
        True, help="which units stay is decided anew, block after block; how many do is as the search found"
    )

    def check(self, config: Config) -> None:
        """Something to choose from."""
        if not self.ridge:
            raise UsageError("tuning.ridge: [] leaves nothing to choose from, give one or more such as [0.1, 1]")

    def fit(self, prunable: PrunableModel, mask: Tensor, lesson: Lesson) -> Fitted:
        """New output projections for the units that mask (n,) keeps."""
        from policyprune.tuning.reconstruct import reconstruct

        return reconstruct(prunable, mask, lesson, self.ridge, self.residual, self.reselect)


@dataclass(kw_only=True)
class LocalPruning(Calibrated):
    """Units of each block and new output projections, by the block's own least squares (ZipLM, OSSCAR, Tyr)."""

    name: str = named("local_pruning")
    sequences: int | None = number(None, at_least=1, help=SEQUENCES)
    inputs: str = choice(
        "pruned",
        choices=("pruned", "dense"),
        help="what reaches a block: behind layers that are pruned already, or in the dense model",
    )
    ridge: float = number(0.01, above=0, help="relative to the mean diagonal of the normal matrix")
    together: int = number(1, at_least=1, help="features of a block that go, or are exchanged, at a time")
    first_order: bool = setting(False, help="units also go by how much of the output they are, as in Tyr-the-Pruner")
    exchanges: int = number(0, at_least=0, help="rounds of exchanging kept units for removed ones, at most")

    chooses_strength: ClassVar[bool] = False

    def check(self, config: Config) -> None:
        """Units that are exchanged one by one."""
        if "query_head" in config.granularity.units:
            raise UsageError(
                f"tuning: local_pruning exchanges units one by one, but those of granularity={config.granularity.name} "
                "go together with others; use reconstruct"
            )

    def fit(self, prunable: PrunableModel, mask: Tensor, lesson: Lesson) -> Fitted:
        """As many units of each block as mask (n,) keeps, and their output projections."""
        from policyprune.tuning.local_pruning import prune_locally

        return prune_locally(prunable, mask, lesson, self.select, self.ridge, changing=self.inputs == "pruned")

    def select(self, squares: Squares, width: int, count: int) -> tuple[Tensor, int]:
        """The `count` units of a block that stay, in rising order, and how many exchanges of them helped."""
        from policyprune.pruning.second_order.elimination import best_units
        from policyprune.pruning.second_order.exchange import exchange

        matrix, right = squares.damped(self.ridge)
        together = max(1, self.together // width)
        kept = best_units(matrix.clone(), right, width, count, together, self.first_order)
        return exchange(matrix, right, width, kept, together, self.exchanges)


@dataclass(kw_only=True)
class Joint(Reconstruct):
    """What reconstruct gives; then all new output projections together, by descent of the divergence from dense."""

    name: str = named("joint")
    passes: int | None = number(
        None,
        at_least=1,
        help="through the calibration sequences, of the descent; null: as many as make 100 steps, four at most",
    )
    batch_size: int = number(8, at_least=1, help="calibration sequences per step of the descent")
    learning_rate: float = number(
        3e-3,
        above=0,
        help="of AdamW at the start of the descent, relative to the root mean square of a weight; times the square "
        "root of the divergence where that is below 1",
    )

    back_propagates: ClassVar[bool] = True

    def fit(self, prunable: PrunableModel, mask: Tensor, lesson: Lesson) -> Fitted:
        """New output projections for the units that mask (n,) keeps."""
        from policyprune.tuning.joint import descend

        fitted = super().fit(prunable, mask, lesson)
        return descend(prunable, fitted, lesson, self.passes, self.batch_size, self.learning_rate)
