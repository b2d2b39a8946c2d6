"""Layer by layer, which units of each block stay and their new weights, both from the block's own least squares."""

from collections.abc import Callable

import torch
from torch import Tensor

from policyprune.models.layerwise import columns_of
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.second_order.least_squares import LeastSquares
from policyprune.pruning.second_order.statistics import dense_least_squares
from policyprune.pruning.second_order.student import Student
from policyprune.pruning.space import Key
from policyprune.tuning.teacher_student import Fitted, Lesson, Report

Select = Callable[[LeastSquares, int, int], tuple[Tensor, int]]


@torch.no_grad()
def prune_locally(
    prunable: PrunableModel, mask: Tensor, lesson: Lesson, select: Select, ridge: float, changing: bool
) -> Fitted:
    """New weights (d, kept features) of the output projections, and a report of each block that loses units.

    With X (tokens, features) what reaches an output projection W, a block keeps as many units as under `mask` (n,):
    those with the least ||X V' - X W'||^2 + r ||V - W||^2 that `select(squares, width, count)` finds, which also says
    how many exchanges that took. V takes the place of W. Behind layers that are pruned already where the model is
    `changing`. A block whose activations are NaN or infinite keeps what `mask` keeps, with its old weights.
    """
    student = Student(prunable, torch.ones_like(mask))
    views = prunable.views(mask)
    weights: dict[Key, Tensor] = {}
    report: Report = []
    with student.on():
        student.prune(changing)
        found = dense_least_squares(prunable, lesson.batches, lesson.first_token, relative=False, changing=changing)
        for block, squares in found:
            key = block.layer, block.kind
            if views[key].all():
                continue
            kept, exchanges = views[key].nonzero().flatten(), 0
            if len(kept) and squares.finite():
                kept, exchanges = select(squares, block.width, len(kept))
            columns = columns_of(block, kept).to(squares.gram.device)
            new = squares.solve(ridge, columns) if len(kept) else None
            student.settle(block, kept, columns, new)
            if not len(kept):
                continue
            own = squares.of_features(columns)
            row = {"layer": block.layer, "kind": block.kind, "outcome": "no solution", "exchanges": exchanges}
            row["error"] = row["binary_error"] = own.error(own.weight)
            if new is not None:
                weights[key] = new.float().cpu()
                row |= {"outcome": "reconstructed", "error": own.error(new)}
            report.append(row)
    return Fitted(student.mask, Compensation(weights=weights), report)
