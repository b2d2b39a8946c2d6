"""Combinations of valid values that make no sense together."""

from policyprune.config.schema import Config, LanguageModeling, PolicyGradient
from policyprune.errors import UsageError

LOOKING = ("wanda_sp", "fisher", "taylor")  # metrics that look at calibration sequences


def check_combinations(config: Config) -> None:
    """Raise UsageError naming the keys that contradict each other and what would work."""
    task, optimizer = config.task, config.optimizer
    if isinstance(task, LanguageModeling):
        if (task.source is None) == (task.files is None):
            raise UsageError("task.source, task.files: give exactly one of them, a hub data set or a list of files")
        if task.calibration.count < config.importance.sequences and config.importance.name in LOOKING:
            raise UsageError(
                f"importance.sequences: {config.importance.sequences} is more than task.calibration.count="
                f"{task.calibration.count}"
            )
    if isinstance(optimizer, PolicyGradient):
        if optimizer.baseline == "leave_one_out" and optimizer.masks < 2:
            raise UsageError("optimizer.masks: 1 leaves nothing to leave out, baseline=leave_one_out needs 2 or more")
        if optimizer.divisor == "masks_minus_one" and optimizer.masks < 2:
            raise UsageError("optimizer.masks: 1 cannot be divided by K - 1, use 2 or more or divisor=masks")
        samples = optimizer.masks * (1 if optimizer.mask_per == "batch" else optimizer.batch_size)
        if optimizer.baseline == "residual" and samples < 2:
            raise UsageError("optimizer.masks: 1 leaves nothing to leave out, baseline=residual needs 2 or more")
        if isinstance(task, LanguageModeling) and optimizer.batch_size > task.calibration.count:
            raise UsageError(
                f"optimizer.batch_size: {optimizer.batch_size} is more than task.calibration.count="
                f"{task.calibration.count}"
            )
    if config.model.device_map is not None and config.model.device not in ("auto", "cuda"):
        raise UsageError(
            f"model.device: {config.model.device!r} contradicts model.device_map={config.model.device_map}, use auto"
        )
    if not config.granularity.units:
        raise UsageError("granularity.units: empty, the choices are attention, ffn")
    if config.evaluation.fresh_process and config.export.name == "none":
        raise UsageError("evaluation.fresh_process: true needs a checkpoint to load, use export=hf")
