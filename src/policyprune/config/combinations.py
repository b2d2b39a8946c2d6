"""Combinations of valid values that make no sense together."""

from policyprune.config.schema import (
    Classification,
    Config,
    Evaluating,
    Evaluation,
    Evolution,
    Exporting,
    Gumbel,
    Labelled,
    LanguageModeling,
    PolicyGradient,
    Reconstruct,
    StraightThrough,
    Task,
)
from policyprune.errors import UsageError
from policyprune.processes import processes

UNITS = ("attention", "ffn", "attention_block", "ffn_block", "layer", "hidden")
OF_HIDDEN = ("fisher", "taylor", "magnitude", "random", "constant")  # metrics that know hidden channels
LOOKING = ("wanda_sp", "fisher", "taylor", "flap", "block_influence")  # metrics that look at calibration sequences


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
    if isinstance(optimizer, PolicyGradient | Evolution | Gumbel | StraightThrough):
        _check_batch(config, optimizer.batch_size)
    if (
        isinstance(optimizer, StraightThrough)
        and optimizer.attention_rate == 0
        and set(config.granularity.units) == {"attention"}
    ):
        raise UsageError(
            f"optimizer.attention_rate: 0 holds all that granularity={config.granularity.name} decides on, use more"
        )
    if isinstance(config.tuning, Reconstruct) and not config.tuning.ridge:
        raise UsageError("tuning.ridge: [] leaves nothing to choose from, give one or more such as [0.1, 1]")
    if isinstance(optimizer, Evolution) and optimizer.parents >= optimizer.population:
        raise UsageError(
            f"optimizer.parents: {optimizer.parents} leaves no place for children in optimizer.population="
            f"{optimizer.population}"
        )
    if optimizer.name == "kwon" and config.importance.name != "fisher":
        raise UsageError(
            f"importance: {config.importance.name!r}, but optimizer=kwon searches by Fisher alone; use fisher"
        )
    if optimizer.name == "greedy" and "ffn" in config.granularity.units:
        raise UsageError(
            f"optimizer: greedy tries every unit before each removal, far too many with granularity="
            f"{config.granularity.name}; use granularity=head, sublayer or layer"
        )
    if optimizer.name == "greedy" and config.budget.name == "latency":
        raise UsageError(
            "optimizer: greedy adds up costs unit by unit, which budget=latency does not; use budget=flops"
        )
    if config.model.device_map is not None and config.model.device not in ("auto", "cuda"):
        raise UsageError(
            f"model.device: {config.model.device!r} contradicts model.device_map={config.model.device_map}, use auto"
        )
    check_processes(config, processes())
    check_granularity(config)
    if config.tuning.name == "bias_compensation" and "gguf" in config.export.formats:
        raise UsageError(
            "export: gguf cannot hold the biases of tuning=bias_compensation, use another tuning or export"
        )
    if config.evaluation.fresh_process and "hf" not in config.export.formats:
        raise UsageError("evaluation.fresh_process: true needs a checkpoint to load, use export=hf")
    check_zero_shot(config.evaluation, config.task)
    check_columns(config.task)


def check_columns(task: Task) -> None:
    """Raise UsageError for labelled examples without text or without a test split."""
    if isinstance(task, Classification) and len(task.text_columns) not in (1, 2):
        raise UsageError(f"task.text_columns: {task.text_columns} is not one or two columns, such as [sentence]")
    if isinstance(task, Labelled) and not task.test_splits:
        raise UsageError("task.test_splits: [] leaves nothing to measure, name one or more such as [validation]")


SHARING = ("policy_gradient", "ppo", "evolution", "greedy")  # searches with masks that do not wait for one another


def check_processes(config: Config, count: int) -> None:
    """Raise UsageError for a run that `count` processes cannot share."""
    if count == 1:
        return
    if config.optimizer.name not in SHARING:
        raise UsageError(
            f"optimizer: {config.optimizer.name!r} has nothing to share between {count} processes, start one, or use "
            f"{', '.join(SHARING)}"
        )
    if isinstance(config.optimizer, PolicyGradient) and config.optimizer.masks < count:
        raise UsageError(
            f"optimizer.masks: {config.optimizer.masks} masks leave some of {count} processes without work, use a "
            f"multiple of {count}"
        )
    if config.model.device_map is not None:
        raise UsageError(
            f"model.device_map: {config.model.device_map!r} spreads one model over all devices, {count} processes "
            "have a device and a model each; use null, or start one process"
        )


def _check_batch(config: Config, size: int) -> None:
    if isinstance(config.task, LanguageModeling) and size > config.task.calibration.count:
        raise UsageError(
            f"optimizer.batch_size: {size} is more than task.calibration.count={config.task.calibration.count}"
        )


DTYPES = {"hf": ("f32", "f16", "bf16"), "onnx": ("f32",), "gguf": ("f32", "f16", "q8_0"), "plan": ()}


def check_exporting(config: Exporting) -> None:
    """Raise UsageError for a dtype that a format lacks."""
    choices = DTYPES[config.format]
    if config.dtype is not None and config.dtype not in choices:
        known = f"is not one of {', '.join(choices)}" if choices else "was given, it has none"
        raise UsageError(f"dtype: for format={config.format} {config.dtype!r} {known}")
    if config.format == "plan" and config.run is None:
        raise UsageError("format: plan needs the folder of a run, a checkpoint does not tell which units it lost")


def check_evaluating(config: Evaluating) -> None:
    """Raise UsageError for what a checkpoint alone cannot be asked."""
    if config.evaluation.one_shot:
        raise UsageError("evaluation.one_shot: metric-only masks are compared in a run, not in an evaluation")
    check_zero_shot(config.evaluation, config.task)
    check_columns(config.task)


def check_zero_shot(evaluation: Evaluation, task: Task) -> None:
    """Raise UsageError for questions to a model that is no language model."""
    if evaluation.zero_shot.tasks and not isinstance(task, LanguageModeling):
        raise UsageError(
            f"evaluation.zero_shot.tasks: {task.name!r} is no language modelling, only language models are asked; "
            "use evaluation=perplexity"
        )


def check_granularity(config: Config) -> None:
    """Raise UsageError for units that do not go together, or not with the budget's scope or the optimizer."""
    units, scope = set(config.granularity.units), config.budget.scope
    blocks = sorted(units & {"attention_block", "ffn_block", "layer"})
    finer = units - {"layer"}
    if not units:
        raise UsageError(f"granularity.units: empty, the choices are {', '.join(UNITS)}")
    _check_spared(config)
    if "hidden" in units:
        _check_hidden(config)
    if "layer" in units and finer and not all(units & {kind, f"{kind}_block"} for kind in ("attention", "ffn")):
        raise UsageError(
            f"granularity.units: {sorted(units)} leaves a part of the layer without a finer unit, name "
            "one of attention, attention_block and one of ffn, ffn_block, or layer alone"
        )
    if blocks and scope != "global":
        raise UsageError(
            f"budget.scope: {scope} asks every layer to keep its share, {', '.join(blocks)} cannot; use global"
        )
    if config.importance.name == "block_influence" and units != {"layer"}:
        raise UsageError(
            f"importance: block_influence scores whole layers, granularity={config.granularity.name} has "
            f"{', '.join(sorted(finer))}; use granularity=layer or another importance"
        )
    pairs = ({"attention", "attention_block"}, {"ffn", "ffn_block"})
    nested = ("layer" in units and finer) or any(pair <= units for pair in pairs)
    if nested and config.optimizer.name in ("greedy", "gumbel", "straight_through"):
        raise UsageError(
            f"optimizer: {config.optimizer.name} takes units one by one, granularity={config.granularity.name} has "
            "some inside others; use one_shot, policy_gradient, ppo or evolution"
        )
    if blocks and config.optimizer.name == "kwon":
        raise UsageError(
            f"optimizer: kwon splits a budget between heads and channels, granularity={config.granularity.name} has "
            f"{', '.join(blocks)}; use one_shot with importance=fisher, policy_gradient or ppo"
        )


def _check_spared(config: Config) -> None:
    """Raise UsageError for shares of layers that leave nothing to prune or contradict the budget's scope."""
    spared = config.granularity.spared
    if len(spared) != 2 or sum(spared) >= 1:
        raise UsageError(
            f"granularity.spared: {spared} is not two shares, of the first and of the last layers, that leave some "
            "layers to prune, such as [0.125,0.0625]"
        )
    if any(spared) and config.budget.scope == "uniform":
        raise UsageError(
            f"granularity.spared: {spared} leaves layers whole, and budget.scope=uniform gives all layers the same "
            "widths; use [0,0] or scope=per_layer"
        )
    if any(spared) and "hidden" in config.granularity.units:
        raise UsageError(f"granularity.spared: {spared}, but hidden channels are the same in all layers; use [0,0]")


def _check_hidden(config: Config) -> None:
    """Raise UsageError for what works on the output projections of blocks, which hidden channels have none of."""
    if len(config.granularity.units) > 1:
        raise UsageError(
            f"granularity.units: {config.granularity.units} prices units by each other, hidden channels go alone; "
            "prune the checkpoint of one run in another"
        )
    if config.budget.scope != "global":
        raise UsageError(
            f"budget.scope: {config.budget.scope}, but hidden channels are the same everywhere; use global"
        )
    if config.budget.name == "latency":
        raise UsageError("budget: latency has no times for hidden channels; use rate, params or flops")
    if config.importance.name not in OF_HIDDEN:
        raise UsageError(
            f"importance: {config.importance.name} scores inputs of output projections, which hidden channels are not; "
            f"use {', '.join(OF_HIDDEN)}"
        )
    if config.optimizer.name in ("greedy", "kwon"):
        raise UsageError(
            f"optimizer: {config.optimizer.name} is for heads and channels of layers, not for hidden channels; use "
            "one_shot, policy_gradient, ppo, evolution or gumbel"
        )
    if config.tuning.name != "none":
        raise UsageError(
            f"tuning: {config.tuning.name} repairs what blocks that lost units put out, with granularity=hidden none "
            "did; use none"
        )
