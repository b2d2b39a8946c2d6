"""policyprune: structured pruning of transformer language models by policy search.

    import policyprune as pp

    result = pp.prune(model, texts, tokenizer, keep=0.8)

What stands here is imported where it is first used: `import policyprune` reads neither torch nor Hydra.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from policyprune.api import (
        Choices,
        PrunableModel,
        evaluate,
        load_plan,
        prune,
    )
    from policyprune.api_recovery import RecoveryResult, recover
    from policyprune.config.schema import Budget, Calibration, Chat, Generated, Granularity, LatencyBudget, Mixture
    from policyprune.errors import RunError, UsageError
    from policyprune.evaluation.sequence_losses import EvaluationResult
    from policyprune.pruning.importance.activations import BlockInfluence, Flap, WandaSp
    from policyprune.pruning.importance.data_free import Constant, Magnitude, Random
    from policyprune.pruning.importance.fisher_taylor import Fisher, Taylor
    from policyprune.pruning.importance.second_order import OBS
    from policyprune.pruning.optimizers.evolution import Evolution
    from policyprune.pruning.optimizers.greedy import Greedy
    from policyprune.pruning.optimizers.gumbel import Gumbel
    from policyprune.pruning.optimizers.kwon import Kwon
    from policyprune.pruning.optimizers.levels.level_evolution import LevelEvolution
    from policyprune.pruning.optimizers.levels.level_policy_gradient import LevelPolicyGradient
    from policyprune.pruning.optimizers.levels.level_ppo import LevelPPO
    from policyprune.pruning.optimizers.levels.levels import Levels
    from policyprune.pruning.optimizers.levels.spdy import SPDY
    from policyprune.pruning.optimizers.no_search import FromRun, OneShot
    from policyprune.pruning.optimizers.policy_gradient import PolicyGradient
    from policyprune.pruning.optimizers.ppo.ppo import PPO
    from policyprune.pruning.optimizers.straight_through import StraightThrough
    from policyprune.recovery.options import Distill, Finetune, Lora
    from policyprune.search.result import PruningResult, Report
    from policyprune.surgery.plan import Plan
    from policyprune.tuning.options import CG2, LSMR, BiasCompensation, Joint, LocalPruning, NoTuning, Reconstruct

__all__ = [
    "CG2",
    "LSMR",
    "OBS",
    "PPO",
    "SPDY",
    "BiasCompensation",
    "BlockInfluence",
    "Budget",
    "Calibration",
    "Chat",
    "Choices",
    "Constant",
    "Distill",
    "EvaluationResult",
    "Evolution",
    "Finetune",
    "Fisher",
    "Flap",
    "FromRun",
    "Generated",
    "Granularity",
    "Greedy",
    "Gumbel",
    "Joint",
    "Kwon",
    "LatencyBudget",
    "LevelEvolution",
    "LevelPPO",
    "LevelPolicyGradient",
    "Levels",
    "LocalPruning",
    "Lora",
    "Magnitude",
    "Mixture",
    "NoTuning",
    "OneShot",
    "Plan",
    "PolicyGradient",
    "PrunableModel",
    "PruningResult",
    "Random",
    "Reconstruct",
    "RecoveryResult",
    "Report",
    "RunError",
    "StraightThrough",
    "Taylor",
    "UsageError",
    "WandaSp",
    "evaluate",
    "load_plan",
    "prune",
    "recover",
]
_HOMES = {  # name -> module, but those of the options, which config/registry.py knows
    **dict.fromkeys(("Choices", "PrunableModel", "evaluate", "load_plan", "prune"), "policyprune.api"),
    **dict.fromkeys(("RecoveryResult", "recover"), "policyprune.api_recovery"),
    **dict.fromkeys(("Budget", "Granularity", "LatencyBudget"), "policyprune.config.schema"),
    **dict.fromkeys(("Calibration", "Chat", "Generated", "Mixture"), "policyprune.config.schema"),
    **dict.fromkeys(("RunError", "UsageError"), "policyprune.errors"),
    "EvaluationResult": "policyprune.evaluation.sequence_losses",
    **dict.fromkeys(("PruningResult", "Report"), "policyprune.search.result"),
    "Plan": "policyprune.surgery.plan",
}


def __getattr__(name: str) -> Any:
    """What `__all__` names, and the version, each looked up where it is asked for."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("policyprune")  # it stands in pyproject.toml alone
        except PackageNotFoundError:  # a source tree that was never installed
            return "0+unknown"
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if not name.startswith("_"):
        from policyprune.config.registry import OPTIONS

        for group in OPTIONS.values():
            for place in group.values():
                module, _, option = place.partition(":")
                if option == name:
                    return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
