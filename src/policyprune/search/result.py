"""What a pruning in memory gives: the smaller model, its mask, a report, and a checkpoint where it is saved."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.output_folders import checkpoint_folder
from policyprune.config.python_names import in_python
from policyprune.config.schema import Config
from policyprune.models.adapter import adapt
from policyprune.models.library_messages import silenced
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.mask_file import save_mask
from policyprune.pruning.prunable import PrunableModel
from policyprune.storage.record_file import MASK_FILE, PLAN_FILE
from policyprune.surgery.checkpoint import save_checkpoint
from policyprune.surgery.plan import Base, Plan
from policyprune.surgery.plan_file import write_plan


@dataclass(frozen=True, kw_only=True)
class Report:
    """The numbers of a pruning; `print(report)` shows the main ones.

    `steps` has a row per step of the search (loss, keep, ...), `keep_rates` one per block (layer, kind, kept, count,
    rate), `tuning` one per block that was repaired (outcome, error). `dense` and `smaller` have `parameters`,
    `block_parameters`, and `block_macs`, multiply-accumulates of the blocks for `config.budget.sequence_length` tokens.
    `protocol` says how texts were cut; `seconds` are those of scores, search and tuning together.
    """

    config: Config
    sequences: int
    tokens: int
    protocol: dict[str, Any]
    forwards: int
    backwards: int
    seconds: float
    steps: list[dict[str, float]]
    keep_rates: list[dict[str, Any]]
    tuning: list[dict[str, Any]]
    dense: dict[str, float]
    smaller: dict[str, float]

    def __str__(self) -> str:
        """A few lines: what was done, what is left of each kind of unit, and the sizes."""
        config = self.config
        parts = f"{config.importance.name}, {config.optimizer.name}, tuning {config.tuning.name}"
        passes = f"{self.forwards} forward passes" + (f", {self.backwards} backward" if self.backwards else "")
        searched = config.optimizer.name != "from_run"  # which takes a mask whatever its budget was
        goal = f"keep {config.budget.keep:g} by {config.budget.name}" if searched else "the mask of another run"
        lines = [
            f"{config.method or parts}: {goal}, "
            f"{self.sequences:,} calibration sequences, {passes}, {self.seconds:.0f} s"
        ]
        for kind in dict.fromkeys(row["kind"] for row in self.keep_rates):
            rows = [row for row in self.keep_rates if row["kind"] == kind]
            kept, count = sum(row["kept"] for row in rows), sum(row["count"] for row in rows)
            widths = [row["kept"] for row in rows]
            lines.append(f"{kind:<17}{_share(kept, count)}, {min(widths):,} to {max(widths):,} in a block")
        lines += [f"{name.replace('_', ' '):<17}{_share(self.smaller[name], self.dense[name])}" for name in self.dense]
        return "\n".join(lines)


def _share(kept: float, of: float) -> str:
    return f"{kept:,} of {of:,} ({kept / of:.3f})"


@dataclass(frozen=True, kw_only=True)
class PruningResult:
    """A smaller model and how it came about.

    `mask` (n,) bool is over `prunable.units`, `probabilities` (n,) are what the search ended with. `model` is ready for
    use; it shares with the dense model the weights that were not cut, such as the embeddings. `compensation` is what a
    tuning changed, None without one. `base` describes the dense model.
    """

    model: PreTrainedModel
    mask: Tensor
    report: Report
    prunable: PrunableModel
    compensation: Compensation | None
    probabilities: Tensor
    base: Base

    @property
    def plan(self) -> Plan:
        """What is kept, to be laid on the dense model again."""
        return Plan(self.base, self.prunable.units, self.mask, self.compensation)

    @in_python({"output": "folder"})
    def save(
        self, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None, max_shard_size: str = "5GB"
    ) -> None:
        """Write a checkpoint that `AutoModel*.from_pretrained` loads, and the mask and a `plan.json` in it.

        Where layers have unequal widths the checkpoint has a short modelling file, for `trust_remote_code=True`.
        policyprune is not needed to load it. UsageError for a folder that holds other files.
        """
        path = checkpoint_folder(folder)
        with silenced():
            save_checkpoint(self.model, tokenizer, adapt(self.model), path, max_shard_size)
        save_mask(path / MASK_FILE, self.mask, self.prunable.units, self.probabilities, self.compensation)
        write_plan(path / PLAN_FILE, self.plan)
