"""From a dense model to a smaller one: scores, a search, a tuning. The command `run` and the Python API call these."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.schema import Calibrated, Importance, Optimizer, Tuning
from policyprune.pruning.budget.budget import Budget
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.importance.evidence import Evidence
from policyprune.pruning.importance.initialisation import initial_probabilities, scores_of
from policyprune.pruning.importance.second_order import OBS
from policyprune.pruning.optimizers.problem import FORGETFUL, Each, Evaluate, Found, Problem, Report, State, one_by_one
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.second_order.statistics import USUAL, SecondOrder
from policyprune.pruning.space import Key, Space
from policyprune.search.database import Database
from policyprune.search.forwards import Forwards, with_gradients
from policyprune.search.verdict import Verdict
from policyprune.surgery.shrink import shrink
from policyprune.tasks.divergence import Divergence
from policyprune.tasks.task import CalibrationData, by_length
from policyprune.tuning.fit import fit, reads_first_token

BATCH = 32  # calibration sequences at a time


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What is pruned, to which budget, and the calibration sequences that decide what goes.

    `quick` is the same model in the data type of the search's forward passes, or the model itself. `importance` says
    how units are scored before anything is searched, `tuning` what is done to those that stay, by which a search may
    judge masks. `database`: where what was measured of the dense model is kept.
    """

    prunable: PrunableModel
    quick: PrunableModel
    data: CalibrationData
    budget: Budget
    importance: Importance
    tuning: Tuning | None = None
    seed: int = 0
    database: Database | None = None

    @cached_property
    def evidence(self) -> Evidence:
        """What the importance score may look at: the first `importance.sequences` sequences."""
        return Evidence(
            prunable=self.prunable,
            rows=by_length(self.data.lengths[: self.importance.sequences], BATCH),
            inputs=self.data.inputs,
            loss=lambda rows: with_gradients(self.data.loss(self.quick.model, rows)),
            keep=self.budget.keep,
            seed=self.seed,
            gradient_per=self.importance.gradient_per,
            first_token=reads_first_token(self.quick.model),
            gather=SecondOrder.of if self.database is None else self.database.second_order,
            recipe=self.importance.recipe() if isinstance(self.importance, OBS) else USUAL,
            quick=self.quick,
        )

    def forget(self) -> None:
        """Free what scores and the search looked at, statistics and weights of masks among it."""
        vars(self).pop("evidence", None)


@dataclass(frozen=True)
class Scores:
    """Importance of each decision of the space, (n,), and the keep probabilities that a search starts from, (n,).

    The scores also say which query heads of a layer a decision is on, where units are query heads (`Space.ranked`).
    """

    importance: Tensor
    start: Tensor
    space: Space


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What a pruning found: the mask (n,) over the units, and how the kept ones are changed.

    `models` are the smaller ones: `pruned` with the weights of the dense model, `tuned` with the compensation, of which
    `tuning` has a row for each block.
    """

    scores: Scores
    found: Found
    mask: Tensor
    compensation: Compensation | None
    models: dict[str, PreTrainedModel]
    tuning: list[dict[str, Any]]

    @property
    def model(self) -> PreTrainedModel:
        """The last of the smaller models."""
        return list(self.models.values())[-1]


@torch.no_grad()
def prune(pruning: Pruning, optimizer: Optimizer, report: Report | None = None) -> Pruned:
    """Score, search, tune and shrink. `report` is called with the numbers of each step of the search."""
    scores = score(pruning)
    found = find_mask(pruning, scores, optimizer, report)
    pruning.forget()
    mask = scores.space.expand(found.mask)
    tuning, compensation, rows = pruning.tuning, None, list[dict[str, Any]]()
    if isinstance(tuning, Calibrated):
        fitted = fit(pruning.prunable, mask, pruning.data, tuning, pruning.quick)
        mask, compensation, rows = fitted.mask, fitted.compensation, fitted.report
    models = {"pruned" if compensation is None else "tuned": shrink(pruning.prunable, mask, compensation)}
    return Pruned(scores=scores, found=found, mask=mask, compensation=compensation, models=models, tuning=rows)


@torch.no_grad()
def score(pruning: Pruning) -> Scores:
    """Importance of the decisions, the sum over the units below each, and the probabilities that spend the budget."""
    of_units = scores_of(pruning.importance, pruning.evidence)
    space = pruning.prunable.space.ranked(of_units)
    importance = space.pooled(of_units)
    return Scores(importance, initial_probabilities(importance, space, pruning.budget, pruning.importance), space)


@torch.no_grad()
def find_mask(
    pruning: Pruning,
    scores: Scores,
    optimizer: Optimizer,
    report: Report | None = None,
    state: State = FORGETFUL,
    share: Callable[[Each], Each] | None = None,
) -> Found:
    """Search for decisions within the budget that have a low loss.

    `report` is called with the numbers of each step; `state` keeps what the search needs to go on after an
    interruption; `share` makes of the evaluation in this process one that several processes share.
    """
    space = scores.space
    quick = PrunableModel(pruning.quick.model, pruning.quick.adapter, space)
    data = Divergence(pruning.data, quick.model) if optimizer.imitates else pruning.data
    statistics = Statistics(pruning.evidence) if optimizer.refits else None
    forwards = Forwards(quick, data.loss, optimizer.sliced, statistics.weights if statistics is not None else None)
    evaluate: Evaluate = forwards
    each: Each = forwards.each if share is None else share(forwards.each)
    if statistics is not None and optimizer.imitates and pruning.database is not None:
        order = repr(space.ranks).encode() if space.ranks else b""  # which query heads a decision is on
        evaluate = pruning.database.remembering(forwards, data.inputs, lambda: statistics.about + order)
        each = partial(one_by_one, evaluate)

    def behind(mask: Tensor) -> Tensor:
        assert statistics is not None
        forwards.forget()
        return space.pooled(statistics.renew(space.expand(mask.float())))

    problem = Problem(
        evaluate=evaluate,
        space=space,
        budget=pruning.budget,
        importance=scores.importance.to(quick.device),
        start=scores.start.to(quick.device),
        lengths=pruning.data.lengths,
        seed=pruning.seed,
        gradients=lambda: space.pooled(pruning.evidence.gradients),
        per_cost=pruning.importance.per_cost,
        behind=None if statistics is None else behind,
        each=each,
        judge=Verdict(quick, pruning.data, pruning.tuning, forwards.release),
    )
    with forwards.on():
        found: Found = optimizer.search(problem, report or _ignore, state)
        return found


class Statistics:
    """The second-order statistics that masks get their weights from; `about` names them, those of the dense model by
    nothing."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence, self._current, self.about = evidence, evidence.second_order, b""

    def weights(self, mask: Tensor) -> dict[Key, Tensor]:
        """New output projections for the units that mask (n,) keeps."""
        return self._current.weights(mask)

    def renew(self, mask: Tensor) -> Tensor:
        """Gather them behind layers that keep as many units as under mask (n,); their scores (n,)."""
        self._current.held.clear()
        self._current = self._evidence.second_order_behind(mask)
        self.about = mask.bool().cpu().numpy().tobytes()
        return self._current.scores()


def _ignore(step: dict[str, Tensor | float]) -> None:
    """Nobody wants to know."""
