"""Layer by layer, real-valued scales of the kept units that bring each block's output near the dense one."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from policyprune.pruning.compensation import Compensation
from policyprune.pruning.prunable import PrunableModel
from policyprune.tuning.teacher_student import Fitted, Lesson, block_tasks

FitBlock = Callable[["NormalEquations", int], tuple[Tensor, dict[str, float | str]]]


@torch.no_grad()
def rescale(prunable: PrunableModel, mask: Tensor, lesson: Lesson, fit_block: FitBlock) -> Fitted:
    """Scales (n,) float32 of the units, 0 where mask (n,) is 0, and a report of each block.

    The inputs of a block are those that the already tuned layers before it produce, its target is the dense model's
    output of the same block (methods, section 5). `fit_block(equations, count)` gives the scales (count,)
    of a block and what became of it.
    """
    scales = mask.float().cpu().clone()
    views = prunable.units.views(scales)
    report = []
    with prunable.masking() as masking:

        def prune(on: bool) -> None:
            masking.set(scales[None].to(prunable.device) if on else None)

        for task in block_tasks(prunable, mask, lesson, prune):
            block, equations = task.block, NormalEquations(task.weight, task.block.width)
            for x, target in task.samples:
                equations.add(x, target)
            fitted, outcome = fit_block(equations, len(task.kept))
            views[block.layer, block.kind][task.kept] = fitted.float().cpu()
            report.append({"layer": block.layer, "kind": block.kind, **outcome})
    return Fitted(mask, Compensation(scales), report)


@dataclass
class NormalEquations:
    """Sums over tokens that give A^T A and A^T b, where column u of A is what unit u adds to the block's output.

    A is never formed. With X (tokens, F) the inputs of the output projection W (d, F), features i and j contribute to
    the output with the inner product (X^T X)_ij (W^T W)_ij, which is then summed over the features of each unit; A^T b
    is the diagonal of X^T b W, summed likewise. `weight` is W of the kept units, `width` the features of each.
    """

    weight: Tensor
    width: int
    gram: Tensor | None = None
    cross: Tensor | None = None
    energy: float = 0.0

    def add(self, x: Tensor, target: Tensor) -> None:
        """Take inputs (tokens, F) and the outputs that they should give (tokens, d), without the output bias."""
        x, target = x.float(), target.float()
        gram, cross = (x.T @ x).double(), ((x.T @ target) * self.weight.float().T).sum(1).double()
        self.gram = gram if self.gram is None else self.gram + gram
        self.cross = cross if self.cross is None else self.cross + cross
        self.energy += float(target.double().square().sum())

    def system(self) -> tuple[Tensor, Tensor]:
        """A^T A (k, k) and A^T b (k,) float64."""
        assert self.gram is not None
        assert self.cross is not None
        weight = self.weight.double()
        features = self.gram * (weight.T @ weight)
        k = len(self.cross) // self.width
        matrix = features.view(k, self.width, k, self.width).sum((1, 3))
        return matrix, self.cross.view(k, self.width).sum(1)

    def error(self, scales: Tensor) -> float:
        """||A x - b||^2 for scales x (k,)."""
        matrix, right = self.system()
        return float(scales @ matrix @ scales - 2 * scales @ right) + self.energy
