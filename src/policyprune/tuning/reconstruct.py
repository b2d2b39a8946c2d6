"""Layer by layer, new output projections of the kept units that bring each block's output near the dense one."""

from dataclasses import replace

import torch
from torch import Tensor

from policyprune.models.adapter import Block
from policyprune.models.layerwise import columns_of
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.second_order.elimination import best_units
from policyprune.pruning.second_order.least_squares import LeastSquares
from policyprune.pruning.second_order.rounds import eliminate_in_rounds
from policyprune.pruning.second_order.statistics import RIDGE, TOGETHER
from policyprune.pruning.second_order.student import Student
from policyprune.pruning.space import Key
from policyprune.tuning.teacher_student import BlockTask, Fitted, Lesson, block_tasks

HELD_OUT = 4  # one token of so many judges the ridge


@torch.no_grad()
def reconstruct(
    prunable: PrunableModel, mask: Tensor, lesson: Lesson, ridges: list[float], residual: float, reselect: bool
) -> Fitted:
    """New weights (d, kept features) of the output projections, and a report of each block.

    With X (tokens, features) what the already reconstructed student brings to an output projection W and Y its output
    in the dense model without the bias, plus `residual` times what the student's residual lacks, W + D with the
    least ||X (W + D)^T - Y||^2 + r ||D||^2 takes the place of W. Of several ridges a block takes the one that, fitted
    to three quarters of the tokens, has the least error on the last quarter. It keeps its weights where there is no
    finite solution or the error, there or of all tokens, would grow.

    With `reselect` a block keeps as many units as under `mask` (n,), but those that second order says for these
    X and Y, which are not those of the dense model that the mask was found with.
    """
    student = Student(prunable, torch.ones_like(mask) if reselect else mask)
    found = {key: view.nonzero().flatten() for key, view in prunable.views(mask).items()}
    weights: dict[Key, Tensor] = {}
    report = []
    with student.on():
        for task in block_tasks(prunable, student.mask, lesson, student.prune, residual):
            key = task.block.layer, task.block.kind
            if not len(found[key]):
                student.keep(task.block, torch.empty(0, dtype=torch.long))
                continue
            fitted, held_out = _gathered(task)
            kept, columns = task.kept, task.columns
            if len(found[key]) < len(kept):  # all of the block's units
                kept = _reselected(fitted, held_out, task.block, found[key])
                columns = columns_of(task.block, kept).to(columns.device)
                fitted = fitted.of_features(columns)
                held_out = held_out.of_features(columns)  # when the larger one of the two lines above is gone
                student.keep(task.block, kept)
            new, outcome = _fit(fitted, held_out, ridges)
            if new is not None:
                new = new / task.gain[:, None]
                weights[key] = new.float().cpu()
                student.give(task.block, columns, new)
            report.append({"layer": task.block.layer, "kind": task.block.kind, **outcome})
            del fitted, held_out  # there is no room for those of two blocks
    return Fitted(student.mask, Compensation(weights=weights), report)


def _gathered(task: BlockTask) -> tuple[LeastSquares, LeastSquares]:
    """Sums over the first three quarters of each batch, and over the rest."""
    weight = task.weight.double()
    fitted, held_out = LeastSquares.of(weight), LeastSquares.of(weight)
    for x, target in task.samples:
        cut = len(x) - len(x) // HELD_OUT
        fitted.add(x[:cut], target[:cut])
        held_out.add(x[cut:], target[cut:])
    return fitted, held_out


def _reselected(fitted: LeastSquares, held_out: LeastSquares, block: Block, found: Tensor) -> Tensor:
    """As many units as `found` (k,), in rising order: those that stay when the others go one after the other.

    Where sums are NaN or infinite, those that were found, and of query heads where key/value heads are gone, too.
    """
    if len(block.groups_of(found)) < block.groups:
        return found
    both = replace(fitted, gram=fitted.gram + held_out.gram, cross=fitted.cross + held_out.cross)
    if not both.finite():
        return found
    matrix, right = both.used_up(RIDGE)
    if block.groups:
        rounds = block.decisions - len(found) // block.groups
        stays = torch.ones(block.count, dtype=torch.bool)
        stays[eliminate_in_rounds(matrix, right, block.width, block.groups, rounds).order] = False
        return stays.nonzero().flatten()
    return best_units(matrix, right, block.width, len(found), max(1, TOGETHER // block.width))


def _fit(
    fitted: LeastSquares, held_out: LeastSquares, ridges: list[float]
) -> tuple[Tensor | None, dict[str, float | str]]:
    """The new weight (d, features) float64, None where the old one stays, and what became of the block."""
    errors = {ridge: held_out.error(weight) for ridge in ridges if (weight := fitted.solve(ridge)) is not None}
    best = min(errors, key=lambda ridge: errors[ridge], default=None)
    gains = best is not None and errors[best] < held_out.error(held_out.weight)
    fitted += held_out
    before = fitted.error(fitted.weight)
    kept: dict[str, float | str] = {"error": before, "binary_error": before}
    new = None if best is None else fitted.solve(best)
    if best is None or new is None:
        return None, {"outcome": "no solution", **kept}
    after = fitted.error(new)
    if not (gains and after < before):
        return None, {"outcome": "no gain", **kept}
    return new, {"outcome": "reconstructed", "error": after, "binary_error": before, "ridge": best}
