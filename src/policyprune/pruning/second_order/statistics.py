"""What the dense model's statistics say of every block: the order in which units go, and the weights without them."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from policyprune.models.adapter import Block
from policyprune.models.layerwise import columns_of, projection, walk, watch
from policyprune.models.stream import gain_of, token_weight, watched
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.second_order.elimination import Elimination, eliminate
from policyprune.pruning.second_order.least_squares import LeastSquares, add_gram
from policyprune.pruning.second_order.rounds import eliminate_in_rounds
from policyprune.pruning.second_order.student import Student
from policyprune.pruning.space import Key

RIDGE = 0.1  # relative to the mean diagonal
TOGETHER = 16  # features that go at a time
SHARE = 0.1  # of a GPU's free memory that statistics may take
HELD_BYTES = 1 << 28  # of weights that were solved for and may be asked for again, or all projections where more


@dataclass(frozen=True)
class Recipe:
    """A ridge relative to the mean diagonal, features that go at a time, whether tokens are weighted as in
    `dense_least_squares`, and whether units are ordered as in `eliminate` with `first_order`."""

    ridge: float = RIDGE
    together: int = TOGETHER
    relative: bool = True
    first_order: bool = False


USUAL = Recipe()


@dataclass(frozen=True)
class BlockStatistics:
    """X'X (F, F) float32 of a block of the dense model, and the order in which its units go.

    They lie where `resting_place` says, those from the disk on the CPU.
    """

    gram: Tensor
    elimination: Elimination

    @staticmethod
    def of(block: Block, squares: LeastSquares, recipe: Recipe, place: torch.device) -> "BlockStatistics":
        """From the block's least squares in the dense model, which are used up; an error that is no number where their
        sums are none."""
        gram = squares.gram.float().to(place)
        if not squares.finite():
            count = len(gram) // block.width
            error = torch.full((count + 1,), torch.nan, dtype=torch.float64)
            return BlockStatistics(gram, Elimination(torch.arange(count), error))
        together = max(1, recipe.together // block.width)
        matrix, right = squares.used_up(recipe.ridge)
        if block.groups:
            elimination = eliminate_in_rounds(matrix, right, block.width, block.groups, first_order=recipe.first_order)
        else:
            elimination = eliminate(matrix, right, block.width, together, first_order=recipe.first_order)
        return BlockStatistics(gram, elimination)


@dataclass(frozen=True)
class SecondOrder:
    """Statistics of the blocks of a dense model, by (layer, kind)."""

    prunable: PrunableModel
    blocks: dict[Key, BlockStatistics]
    recipe: Recipe = USUAL
    held: "OrderedDict[tuple[Key, bytes], Tensor]" = field(default_factory=OrderedDict, repr=False)

    @staticmethod
    def of(
        prunable: PrunableModel, batches: list[dict[str, Tensor]], first_token: bool, recipe: Recipe = USUAL
    ) -> "SecondOrder":
        """Gather them in one walk through the dense model; only one layer's inverses are held at a time."""
        blocks, place = {}, resting_place(prunable)
        for block, squares in dense_least_squares(prunable, batches, first_token, recipe.relative):
            blocks[block.layer, block.kind] = BlockStatistics.of(block, squares, recipe, place)
            del squares  # there is no room for those of two layers
        return SecondOrder(prunable, blocks, recipe)

    def scores(self) -> Tensor:
        """How much the error rises when a unit goes at its turn, (n,) float32 on the CPU, never less than before it.

        The rise is relative to the dense residual, so it can be compared between blocks. Units that go first have the
        lowest scores of their block.
        """
        scores = torch.zeros(self.prunable.units.n, dtype=torch.float64)
        views = self.prunable.units.views(scores)
        for key, block in self.blocks.items():
            rises = block.elimination.error.diff().cummax(0).values
            views[key][block.elimination.order] = rises * (1 + 1e-6 * torch.arange(len(rises)))  # no ties
        return scores.float()

    def behind(self, batches: list[dict[str, Tensor]], first_token: bool, mask: Tensor) -> "SecondOrder":
        """Those of a model whose earlier layers keep as many units as under mask (n,), with their weights."""
        counts = {key: int(view.sum()) for key, view in self.prunable.views(mask).items()}
        student = Student(self.prunable, torch.ones_like(mask))
        blocks, place = {}, resting_place(self.prunable)
        with student.on():
            student.prune(True)
            found = dense_least_squares(self.prunable, batches, first_token, self.recipe.relative, changing=True)
            for block, squares in found:
                key = block.layer, block.kind
                own = replace(squares, gram=squares.gram.clone(), cross=squares.cross.clone())
                blocks[key] = BlockStatistics.of(block, own, self.recipe, place)
                del own
                if counts[key] < block.count:
                    kept = blocks[key].elimination.order[block.count - counts[key] :].sort().values
                    columns = columns_of(block, kept).to(squares.gram.device)
                    weight = squares.solve(self.recipe.ridge, columns) if len(kept) else None
                    if weight is not None and self.recipe.relative:
                        weight = weight / gain_of(self.prunable.model, block)[:, None]
                    student.settle(block, kept, columns, weight)
                del squares
        return SecondOrder(self.prunable, blocks, self.recipe)

    def weights(self, mask: Tensor) -> dict[Key, Tensor]:
        """Least-squares weights (d, k) for the units that mask (n,) keeps of each block that loses some but not all."""
        views = self.prunable.views(mask)
        cut = {key: view for key, view in views.items() if view.any() and not view.all()}
        return {key: self._weight(key, view) for key, view in cut.items()}

    @cached_property
    def _room(self) -> int:
        """Bytes to hold: the weights of a whole mask fit, or a search that changes a block at a time would find none
        of the others."""
        model, blocks = self.prunable.model, self.prunable.prunable_blocks
        return max(HELD_BYTES, sum(projection(model, block)[0].nbytes for block in blocks))

    def _weight(self, key: Key, view: Tensor) -> Tensor:
        name = key, view.numpy().tobytes()
        if name not in self.held:
            self.held[name] = self._solved(key, view)
            while sum(weight.nbytes for weight in self.held.values()) > self._room and len(self.held) > 1:
                self.held.popitem(last=False)
        self.held.move_to_end(name)
        return self.held[name]

    def _solved(self, key: Key, view: Tensor) -> Tensor:
        block = self.prunable.blocks[key]
        weight = projection(self.prunable.model, block)[0]
        gram = self.blocks[key].gram.to(weight.device).double()
        columns = columns_of(block, view.nonzero().flatten()).to(gram.device)
        old = weight.double()
        new = LeastSquares(old, gram, gram @ old.T).solve(self.recipe.ridge, columns)
        return (weight[:, columns] if new is None else new).to(weight.dtype)


def resting_place(prunable: PrunableModel) -> torch.device:
    """Where statistics of all blocks lie: where the model does, or on the CPU where they would take much of a GPU."""
    device = prunable.device
    if device.type != "cuda":
        return device
    weights = [projection(prunable.model, block)[0] for block in prunable.prunable_blocks]
    free, _ = torch.cuda.mem_get_info(device)
    return torch.device("cpu") if sum(4 * weight.shape[1] ** 2 for weight in weights) > SHARE * free else device


def dense_least_squares(
    prunable: PrunableModel,
    batches: list[dict[str, Tensor]],
    first_token: bool,
    relative: bool = True,
    changing: bool = False,
) -> Iterator[tuple[Block, LeastSquares]]:
    """For each block that has units, least squares of its output projection towards its own output.

    With `relative` tokens and channels are weighted as tunings weigh them, so an error counts relative to the residual
    that it is added to, and each row of `weight` is multiplied by its gain. Padding is left out; with `first_token` the
    last layer is about the first token alone. The model is the dense one; if it is `changing`, what the caller does to
    a layer's blocks shows in the inputs of the next layer.
    """
    model, adapter = prunable.model, prunable.adapter
    for layer, path in zip(walk(model, adapter, batches, first_token), adapter.layers, strict=True):
        blocks = [block for block in prunable.prunable_blocks if block.layer == layer.index]
        squares = {block.out: LeastSquares.of(_weight_of(model, block, relative)) for block in blocks}
        names = [path, *(name for block in blocks for name in watched(block))]
        for passed in watch(model, layer, names, final=not changing):
            for block in blocks:
                x = passed[block.out][0]
                add_gram(squares[block.out].gram, x * token_weight(passed, block, path) if relative else x)
        for block in blocks:
            yield block, _towards_itself(squares.pop(block.out))  # and nothing here holds it any longer


def _towards_itself(squares: LeastSquares) -> LeastSquares:
    squares.cross = squares.gram @ squares.weight.T
    squares.energy = float((squares.cross * squares.weight.T).sum())
    return squares


def _weight_of(model: nn.Module, block: Block, relative: bool) -> Tensor:
    weight = projection(model, block)[0]
    return weight * gain_of(model, block)[:, None] if relative else weight
