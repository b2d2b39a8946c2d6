"""What `scale.py` measures of forwards and of the steps of searches; the rest is in scale_statistics.py."""

import statistics
from functools import partial

import torch
from scale_models import KEEP, Result, Subject, Timed, cut, kept
from scale_statistics import of_layers
from torch import Tensor

from policyprune.config.schema import Budget
from policyprune.evaluation.latency import in_turns, relative
from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.masking import Masking
from policyprune.pruning.optimizers.levels.levels import Levels
from policyprune.pruning.optimizers.policy_gradient import Descent, PolicyGradient
from policyprune.pruning.optimizers.problem import Problem
from policyprune.search.forwards import Forwards
from policyprune.surgery.sliced import Sliced
from policyprune.tasks.divergence import Divergence

KEEPS = (0.5, 0.8)  # of the sliced forwards
ROWS = 8  # sequences of a forward and of a step
REPEATS = 5
STEPS = 10
KINDS = ("attention", "ffn")


def forward(subject: Subject) -> Result:
    """Whole forwards with the loss: dense, masked, and sliced with the gathering of weights; medians of rounds."""
    prunable, rows = subject.prunable, torch.arange(min(ROWS, subject.sequences))
    masking, sliced = Masking(prunable.adapter, prunable.units), Sliced(prunable)
    dense = partial(subject.data.loss, prunable.model, rows)

    def masked() -> None:
        with masking.on(prunable.model):
            masking.set(on_device)
            dense()

    def gathered(mask: Tensor) -> None:
        sliced.set(mask)
        subject.data.loss(sliced.model, rows)

    on_device = kept(prunable, KEEP)[None].float().to(subject.device)
    masks = {f"sliced_{keep:g}": kept(prunable, keep) for keep in KEEPS}
    actions = {"dense": dense, "masked": masked} | {name: partial(gathered, mask) for name, mask in masks.items()}
    seconds = in_turns(actions, REPEATS, subject.device)
    return {
        "rows": len(rows),
        "seconds": {name: statistics.median(own) for name, own in seconds.items()},
        "relative_to_dense": relative(seconds, "dense"),
    }


def policy_gradient(subject: Subject) -> Result:
    """A step with K = 2: a mask for each sequence (masked forwards), and one for the batch (sliced ones)."""
    return {f"mask_per_{per}": _descent(subject, per) for per in ("sequence", "batch")}


@torch.no_grad()
def _descent(subject: Subject, mask_per: str) -> Result:
    prunable, loss = subject.prunable, Timed(subject, subject.data.loss)
    size = min(ROWS, subject.sequences)
    options = PolicyGradient(steps=10**6, masks=2, mask_per=mask_per, batch_size=size)
    forwards = Forwards(prunable, loss, sliced=options.sliced)
    start = torch.full((prunable.space.n,), KEEP, device=subject.device)
    problem = Problem(
        evaluate=forwards,
        space=prunable.space,
        budget=make_budget(Budget(keep=KEEP), prunable.adapter, prunable.space),
        importance=start,
        start=start,
        lengths=subject.data.lengths,
        seed=0,
        each=forwards.each,
    )
    with forwards.on():
        descent = Descent(problem, options)
        for _ in range(2):
            descent.step()
        began = subject.now()
        for _ in range(STEPS):  # as in a search: nobody waits
            descent.step()
        step = (subject.now() - began) / STEPS
        loss.on, began = True, subject.now()
        for _ in range(STEPS):
            descent.step()
        waited = (subject.now() - began) / STEPS
    inside = loss.taken() / STEPS
    return {
        "rows": size,
        "masks": options.masks,
        "step_seconds": step,
        "synchronised_step_seconds": waited,
        "forward_seconds": inside,
        "outside_seconds": waited - inside,
    }


@torch.no_grad()
def level(subject: Subject) -> Result:
    """A measurement of the level search: one block at each of the widths, its weights solved for, all others whole.

    Blocks of the first, the middle and the last layer. A search measures block after block, and layers before the block
    are not computed again; so the mean of the three layers stands for the mean of all.
    """
    prunable, options = subject.prunable, Levels()
    rows = torch.arange(min(options.sequences, subject.sequences))
    count = len(prunable.adapter.layers)
    layers = sorted({0, count // 2, count - 1})
    database = of_layers(subject, layers)
    loss, refit = Timed(subject, Divergence(subject.data, prunable.model).loss), Timed(subject, database.weights)
    forwards = Forwards(prunable, loss, sliced=True, refit=refit)

    def measure(mask: Tensor) -> float:  # as optimizer=levels does
        losses = forwards.each([(mask[None].float().to(subject.device), rows)])[0]
        return float(losses.double().mean())

    whole, measured = torch.ones(prunable.units.n, dtype=torch.bool), []
    with forwards.on():
        measure(whole)  # what the dense model says is held from now on
        for kind in KINDS:  # the first solution of a process takes longer
            measure(cut(prunable, {(layers[0], kind): KEEP}))
        database.held.clear()
        for layer in layers:
            for kind in KINDS:
                measure(whole)
                for width in options.widths:
                    mask = cut(prunable, {(layer, kind): width})
                    loss.on = refit.on = True
                    began = subject.now()
                    measure(mask)
                    seconds = subject.now() - began
                    loss.on = refit.on = False
                    inside, solving = loss.taken(), refit.taken()
                    measured.append(
                        {
                            "layer": layer,
                            "kind": kind,
                            "width": width,
                            "step_seconds": seconds,
                            "forward_seconds": inside,
                            "outside_seconds": seconds - inside,
                            "solve_seconds": solving,  # part of those outside
                        }
                    )
    means = {name: statistics.mean(row[name] for row in measured) for name in measured[0] if name.endswith("_seconds")}
    each = len(options.widths) + 2 * options.rounds
    at_most = 2 + options.rounds + len(prunable.prunable_blocks) * each
    beside = sum(own.gram.nbytes for own in database.blocks.values() if own.gram.device.type == subject.device.type)
    return {
        "rows": len(rows),
        **means,
        "measurements_at_most": at_most,
        "measured": measured,
        "not_held_mb": (count / len(layers) - 1) * beside / 2**20,  # statistics of the other layers, to add to the peak
    }
