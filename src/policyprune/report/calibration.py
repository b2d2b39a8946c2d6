"""What each stage of a run looked at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from policyprune.report.runs import Run

STAGES = ("importance", "search", "tuning")


@dataclass(frozen=True)
class Budget:
    """Calibration sequences and tokens of one stage, and whether it went backwards through the model."""

    sequences: int | None
    tokens: int | None
    backward: bool | None


def budgets(run: Run) -> dict[str, Budget]:
    """Per stage what the record states, or, for records that do not, what the config allowed it to look at."""
    stated = run.content.get("calibration")
    if isinstance(stated, list):
        stated = {own.get("stage", own.get("name")): own for own in stated if isinstance(own, dict)}
    if isinstance(stated, dict) and any(isinstance(stated.get(stage), dict) for stage in STAGES):
        return {stage: _stated(stated[stage]) for stage in STAGES if isinstance(stated.get(stage), dict)}
    return _allowed(run)


def sequences_seen(run: Run, stages: Sequence[str] = STAGES) -> int | None:
    """The most sequences that any of the stages looked at, None where they looked at none."""
    counts = [budget.sequences for stage, budget in budgets(run).items() if budget.sequences and stage in stages]
    return max(counts, default=None)


def _stated(stage: dict[str, Any]) -> Budget:
    backward = next((stage[key] for key in stage if key.startswith("back")), None)
    return Budget(stage.get("sequences"), stage.get("tokens"), None if backward is None else bool(backward))


def _allowed(run: Run) -> dict[str, Budget]:
    config = run.config
    pool = config.get("task", {}).get("calibration", {})
    counts = {
        "importance": config.get("importance", {}).get("sequences"),
        "search": pool.get("count") if run.search.get("forwards") else None,
        "tuning": config.get("tuning", {}).get("sequences"),
    }
    length = pool.get("length")
    return {
        stage: Budget(count, count * length if length else None, None)
        for stage, count in counts.items()
        if count is not None
    }
