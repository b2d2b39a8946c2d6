"""What `scale.py` measures of second-order statistics, of solving with them, and of a tuning."""

from collections.abc import Iterable

import torch
from scale_models import KEEP, SHAPES, Result, Subject, cut, kept, made

from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.second_order.elimination import Elimination, eliminate
from policyprune.pruning.second_order.statistics import (
    USUAL,
    BlockStatistics,
    SecondOrder,
    dense_least_squares,
    resting_place,
)
from policyprune.pruning.space import Key, Space
from policyprune.runs.stages import measured
from policyprune.tuning.fit import fit
from policyprune.tuning.options import Reconstruct

SHALLOW = (1, 3)  # layers of the models that are tuned


@torch.no_grad()
def of_layers(subject: Subject, layers: Iterable[int]) -> SecondOrder:
    """Statistics of some layers' blocks alone, without the order of their units: enough for weights."""
    prunable, wanted = subject.prunable, set(layers)
    place = resting_place(prunable)
    groups = tuple(group for group in prunable.units.groups if group.layer in wanted)
    some = PrunableModel(prunable.model, prunable.adapter, Space(groups))
    blocks: dict[Key, BlockStatistics] = {}
    for block, squares in dense_least_squares(some, subject.batches, first_token=False):
        no_order = Elimination(torch.arange(block.count), torch.zeros(block.count + 1, dtype=torch.float64))
        blocks[block.layer, block.kind] = BlockStatistics(squares.gram.float().to(place), no_order)
        del squares
    return SecondOrder(prunable, blocks)


@torch.no_grad()
def second_order(subject: Subject) -> Result:
    """Statistics and eliminations of the layers in order, until the last one or the subject's limit; the solves.

    Seconds of `all_layers` are those of the measured ones times the ratio of their numbers.
    """
    prunable = subject.prunable
    layers = len(prunable.adapter.layers)
    eliminate(
        torch.eye(64, dtype=torch.float64, device=subject.device), torch.ones(64, 8).double().to(subject.device), 1
    )
    last = {block.layer: block.kind for block in prunable.prunable_blocks}
    blocks: dict[Key, BlockStatistics] = {}
    gathering = eliminating = 0.0
    place = resting_place(prunable)
    began = mark = subject.now()
    for block, squares in dense_least_squares(prunable, subject.batches, first_token=False):
        gathered = subject.now()
        blocks[block.layer, block.kind] = BlockStatistics.of(block, squares, USUAL, place)
        del squares
        now = subject.now()
        gathering, eliminating, mark = gathering + gathered - mark, eliminating + now - gathered, now
        if block.kind == last[block.layer] and now - began > subject.limit:
            break
    done = 1 + max(layer for layer, _ in blocks)
    share = layers / done
    database = SecondOrder(prunable, blocks)
    mask = cut(prunable, dict.fromkeys(blocks, KEEP))
    began = subject.now()
    database.weights(mask)
    solved = subject.now()
    database.weights(mask)
    again = subject.now()
    held = sum(own.gram.nbytes for own in blocks.values())
    beside = held if place.type == subject.device.type else 0  # of the model
    return {
        "sequences": subject.sequences,
        "measured_layers": done,
        "layers": layers,
        "scaled": done < layers,
        "measured": {"statistics_seconds": gathering, "elimination_seconds": eliminating},
        "all_layers": {
            "statistics_seconds": share * gathering,
            "elimination_seconds": share * eliminating,
            "solve_seconds": share * (solved - began),
            "solve_again_seconds": share * (again - solved),
            "statistics_mb": share * held / 2**20,
        },
        "not_held_mb": (share - 1) * beside / 2**20,  # to add to the peak
    }


def tuning(subject: Subject) -> Result:
    """tuning=reconstruct with all sequences, on models of a few such layers; the line through them at all layers."""
    subject.release()
    found = []
    for layers in (SHALLOW[0], *SHALLOW):  # the first one of a process takes longer, and does not count
        prunable = made(subject.name, subject.device, subject.length, layers)
        stages: list[Result] = []
        with measured("tuning", stages):
            began = subject.now()
            rows = fit(prunable, kept(prunable, KEEP), subject.data, Reconstruct()).report
            seconds = subject.now() - began
        found.append({"layers": layers, "seconds": seconds, "peak_mb": subject.peak(stages[0]), "blocks": len(rows)})
    few, more = found[1:]
    wanted = SHAPES[subject.name]["num_hidden_layers"] - few["layers"]

    def at_all(name: str) -> float:
        return few[name] + wanted * max(0.0, more[name] - few[name]) / (more["layers"] - few["layers"])

    return {
        "sequences": subject.sequences,
        "scaled": True,
        "measured": found[1:],
        "all_layers": {"seconds": at_all("seconds"), "peak_mb": at_all("peak_mb")},
    }
