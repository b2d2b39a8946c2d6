"""Combinations of valid values that make no sense together.

What only one optimizer, importance or tuning forbids is in its own `check`; what it can do, it declares on its class.
"""

from policyprune.config.registry import able
from policyprune.config.schema import (
    Classification,
    Config,
    Evaluating,
    Evaluation,
    Exporting,
    Generated,
    Labelled,
    LanguageModeling,
    Mixture,
    Recovering,
    Task,
    Text,
    Trained,
)
from policyprune.config.schema.inputs import UNITS
from policyprune.config.texts import check_generated, check_mixture, check_shares, corpus_of, training_corpus
from policyprune.errors import UsageError
from policyprune.processes import processes


def check_combinations(config: Config) -> None:
    """Raise UsageError naming the keys that contradict each other and what would work."""
    check_task(config.task)
    _check_calibration(config)
    for part in (config.optimizer, config.importance, config.tuning):
        part.check(config)
    if config.model.device_map is not None and config.model.device not in ("auto", "cuda"):
        raise UsageError(
            f"model.device: {config.model.device!r} contradicts model.device_map={config.model.device_map}, use auto"
        )
    _check_processes(config, processes())
    _check_recovery(config, processes())
    _check_granularity(config)
    if config.tuning.adds_biases and "gguf" in config.export.formats:
        raise UsageError(
            f"export: gguf cannot hold the biases of tuning={config.tuning.name}, use another tuning or export"
        )
    if config.evaluation.fresh_process and "hf" not in config.export.formats:
        raise UsageError("evaluation.fresh_process: true needs a checkpoint to load, use export=hf")


def check_task(task: Task) -> None:
    """Raise UsageError for a text from nowhere, a mixture of none, and labelled examples without text or test split."""
    if isinstance(task, Mixture):
        check_mixture(task)
    if isinstance(task, Generated):
        check_generated(task)
    if isinstance(task, LanguageModeling) and (task.source is None) == (not task.files):
        raise UsageError("task.source, task.files: give exactly one of them, a hub data set or a list of files")
    if isinstance(task, Classification) and len(task.text_columns) not in (1, 2):
        raise UsageError(f"task.text_columns: {task.text_columns} is not one or two columns, such as [sentence]")
    if isinstance(task, Labelled) and not task.test_splits:
        raise UsageError("task.test_splits: [] leaves nothing to measure, name one or more such as [validation]")


def _check_calibration(config: Config) -> None:
    """Raise UsageError for more sequences than there are, and for a text of a mixture that has none of them."""
    task, wanted = config.task, config.importance.sequences
    check_shares(task)
    if not isinstance(task, Text) or not config.importance.needs_calibration or wanted is None:
        return
    if wanted > task.calibration.count:
        raise UsageError(
            f"importance.sequences: {wanted} is more than the {task.calibration.count} sequences of "
            "task.calibration.count"
        )


def _check_processes(config: Config, count: int) -> None:
    """Raise UsageError for a run that `count` processes cannot share."""
    if count == 1:
        return
    if not config.optimizer.shares_masks:
        raise UsageError(
            f"optimizer: {config.optimizer.name!r} has nothing to share between {count} processes, start one, or use "
            f"{', '.join(able('optimizer', 'shares_masks'))}"
        )
    if "query_head" in config.granularity.units:
        raise UsageError(
            f"granularity: {config.granularity.name} has query heads, whose order {count} processes do not share; "
            "start one process"
        )
    if config.model.device_map is not None:
        raise UsageError(
            f"model.device_map: {config.model.device_map!r} spreads one model over all devices, {count} processes "
            "have a device and a model each; use null, or start one process"
        )


def _check_recovery(config: Config, count: int) -> None:
    """Raise UsageError for a training that this run cannot do."""
    if not isinstance(config.recovery, Trained):
        return
    check_recovery(config.recovery, config.task)
    if count > 1:
        raise UsageError(f"recovery: {config.recovery.name!r} in a run takes one process, there are {count}")
    if config.model.device_map is not None:
        raise UsageError(
            f"model.device_map: {config.model.device_map!r} spreads the model over devices, "
            f"recovery={config.recovery.name} trains on one; use null"
        )


def check_recovery(recovery: Trained, task: Task) -> None:
    """Raise UsageError for what this machine lacks, and for another text that there is not or that is of no use."""
    recovery.check()
    if recovery.task is None:
        return
    training_corpus(recovery.task, "recovery.task")
    if not isinstance(task, Text):
        raise UsageError(
            f"recovery.task: {recovery.task!r}, but task={task.name} is trained on its own examples; use null"
        )


def _check_granularity(config: Config) -> None:
    """Raise UsageError for units that do not go together, or not with the budget's scope or the optimizer."""
    units, scope = set(config.granularity.units), config.budget.scope
    if {"attention", "query_head"} <= units:
        raise UsageError(
            "granularity.units: attention takes whole KV groups away and query_head some query heads of each, name one "
            "of them; prune the checkpoint of one run in another"
        )
    units = config.granularity.kinds
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
    pairs = ({"attention", "attention_block"}, {"ffn", "ffn_block"})
    nested = ("layer" in units and finer) or any(pair <= units for pair in pairs)
    if nested and not config.optimizer.handles_nested:
        raise UsageError(
            f"optimizer: {config.optimizer.name} takes units one by one, granularity={config.granularity.name} has "
            f"some inside others; use {', '.join(able('optimizer', 'handles_nested'))}"
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
    """Raise UsageError for what is about the units of layers, to which hidden channels do not belong."""
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
    for group, part in (("importance", config.importance), ("optimizer", config.optimizer), ("tuning", config.tuning)):
        if not part.handles_hidden:
            raise UsageError(
                f"{group}: {part.name} is for heads and channels of layers, not for hidden channels; use "
                f"{', '.join(able(group, 'handles_hidden'))}"
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


def check_evaluating(config: Evaluating | Recovering) -> None:
    """Raise UsageError for what a checkpoint alone cannot be asked."""
    if isinstance(config, Recovering):
        _check_recovering(config)
    elif isinstance(config.task, Generated) and config.task.test_task is None:
        raise UsageError("task.test_task: null, and nothing is written in an evaluation; name a text such as wikipedia")
    if config.evaluation.one_shot:
        raise UsageError("evaluation.one_shot: masks by scores alone are compared in a run, not in an evaluation")
    check_task(config.task)


def _check_recovering(config: Recovering) -> None:
    """Raise UsageError for nothing to do, and for a dense model that nobody named."""
    if not isinstance(config.recovery, Trained):
        raise UsageError(f"recovery: {config.recovery.name!r} does nothing, use distill, finetune or lora")
    check_recovery(config.recovery, config.task)
    if isinstance(config.task, Generated) and config.teacher is None:
        raise UsageError("teacher: task=generated is written by the dense model, give teacher=SOURCE")
    if config.recovery.needs_teacher and config.teacher is None:
        raise UsageError(
            f"teacher: recovery={config.recovery.name} needs the dense model, which a checkpoint does not name; give "
            "teacher=SOURCE, or use recovery=finetune"
        )
    if config.model.device_map is not None:
        raise UsageError(f"model.device_map: {config.model.device_map!r}, but one device is trained on; use null")


def check_evaluation(evaluation: Evaluation, task: Task) -> None:
    """Raise UsageError for questions and texts to a model that is no language model, and for texts of one name."""
    if evaluation.zero_shot.tasks and not isinstance(task, Text):
        raise UsageError(
            f"evaluation.zero_shot.tasks: {task.name!r} is no language modelling, only language models are asked; "
            "use evaluation=perplexity"
        )
    if isinstance(task, Generated) and task.test_task is None and evaluation.lengths:
        raise UsageError(
            "task.test_task: null, but perplexity is measured on a text that the model did not write; name one such as "
            "wikipedia, or use evaluation.lengths=[]"
        )
    if not evaluation.texts:
        return
    if not isinstance(task, Text):
        raise UsageError(
            f"evaluation.texts: {evaluation.texts}, but task={task.name} is no language modelling and has no "
            "perplexity; use []"
        )
    if not evaluation.lengths:
        raise UsageError(
            f"evaluation.texts: {evaluation.texts} are measured at evaluation.lengths, which is empty; give some "
            "such as [128]"
        )
    own = task.parts[0] if isinstance(task, Mixture) else task.test_task if isinstance(task, Generated) else task.name
    if own in evaluation.texts:
        raise UsageError(f"evaluation.texts: {own!r} is the task's own text, which is measured anyway")
    names = [corpus_of(text).name for text in evaluation.texts]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"evaluation.texts: two are called {twice[0]!r} in tables, rename a file or leave one out")
