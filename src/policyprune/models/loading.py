"""Load the dense model and its tokenizer from any source, onto the device and in the dtype that the config asks for."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from huggingface_hub import hf_hub_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from policyprune.config.schema import Classification, Model, QuestionAnswering, Task
from policyprune.errors import RunError, UsageError
from policyprune.models.gguf import converted
from policyprune.models.padding import settle_padding
from policyprune.models.precision import dtype_of
from policyprune.models.residual import KEPT_HIDDEN_SIZE
from policyprune.models.weights import check_class, check_finite, check_keys, check_tokens
from policyprune.storage.checkpoint_files import check_model, has_weights
from policyprune.storage.files import disk_trouble
from policyprune.storage.sources import locate_model

log = logging.getLogger(__name__)

COUNTING_FROM_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm")  # positions

OF_NO_USE = (  # loggers whose warnings nobody can act on
    "transformers.integrations.heterogeneity.configuration_utils",  # a width is read where layers differ, as it may be
    "transformers.distributed.tensor_parallel",  # no plan is asked for
    "transformers.trainer_utils",  # times of files are not compared on this disk
)


def device_of(config: Model) -> torch.device:
    """`auto` is cuda where there is one, else cpu. UsageError for a device that this machine lacks."""
    wanted = config.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device).item()  # a device without values, as meta, is none
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"model.device: {config.device!r} is not on this machine, use auto or cpu") from error
    return device


def quiet() -> None:
    """Leave the screen to our own progress bars, and to what somebody can act on."""
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    for name in OF_NO_USE:
        logging.getLogger(name).setLevel(logging.ERROR)


def load(
    config: Model, task: Task, head: dict[str, Any] | None = None, anyone: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the dense model with the head that the task needs, in eval mode and without gradients, and its tokenizer.

    `head` are options of a head that is yet to be trained. `anyone`: also a model whose class is its own.
    """
    model, tokenizer = load_as(config, head_of(task), head, anyone)
    if isinstance(task, Classification):
        settle_padding(model, tokenizer)
    return model, tokenizer


def load_as(
    config: Model, kind: Any, head: dict[str, Any] | None = None, anyone: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The same with an auto class of transformers instead of a task.

    UsageError naming model.source for whatever transformers cannot load, and for weights that are not those of the
    model: some that are missing, too many, or no numbers.
    """
    device = device_of(config)
    said = stated(config)
    with _complaining(config), _without_report():
        where = _where(config)
        if isinstance(where, Path):
            check_model(config.source, where)
        _check_code(config, said)
        if getattr(said, "auto_map", None) and not config.trust_remote_code:
            log.warning("%s brings its own code, which is not run: transformers has a class for it", config.source)
        tokenizer = AutoTokenizer.from_pretrained(where, **_hub(config, where))
        model, told = kind.from_pretrained(
            where,
            dtype=dtype_of(config, device),
            attn_implementation=_attention(config),
            device_map=config.device_map,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **_hub(config, where),
            **(head or {}),
        )
        check_keys(config.source, model, told, new_head=head is not None)
        check_tokens(config.source, model, tokenizer)
        if not anyone:
            check_class(config.source, model)
        _settle_tying(config, model)
    if config.device_map is None:
        model.to(device)
    check_finite(config.source, model)
    model.eval().requires_grad_(False)
    return model, tokenizer


def skeleton(config: Model, task: Task, head: dict[str, Any] | None = None, anyone: bool = False) -> PreTrainedModel:
    """The model's structure without its weights (on the meta device), from its config alone.

    What `load` refuses is refused here too, as far as it can be told without reading weights.
    """
    return skeleton_as(config, head_of(task), head, anyone)


def skeleton_as(
    config: Model, kind: Any = None, head: dict[str, Any] | None = None, anyone: bool = False
) -> PreTrainedModel:
    """The same with an auto class of transformers; without one, that of the architecture which the config names."""
    said = stated(config)
    return structure(config, said, kind or _stated_head(said), head, anyone)


def stated(config: Model) -> PreTrainedConfig:
    """What the model's config says; no weights are read, save of a GGUF file, which is converted (once)."""
    quiet()
    with _complaining(config):
        where = _where(config)
        if isinstance(where, Path):
            check_model(config.source, where, weights=False)
        said = AutoConfig.from_pretrained(where, **_hub(config, where))
    assert isinstance(said, PreTrainedConfig)
    layers = getattr(said, "num_hidden_layers", None)
    if layers is not None and layers < 1:
        raise UsageError(f"model.source: {config.source!r} has num_hidden_layers={layers} in its config.json")
    if any(getattr(said, "pruned_heads", None) or {}):
        raise UsageError(
            f"model.source: {config.source!r} has pruned_heads in its config.json, which transformers 5 no longer reads"
        )
    return said


def structure(
    config: Model, said: PreTrainedConfig, kind: Any, head: dict[str, Any] | None = None, anyone: bool = False
) -> PreTrainedModel:
    """A model of the auto class `kind` on the meta device, compared with the names of the weights on this disk."""
    _check_code(config, said)
    with _complaining(config), _without_report():
        trusted = {"trust_remote_code": config.trust_remote_code}
        with torch.device("meta"):
            model = kind.from_config(said, attn_implementation=_attention(config), **trusted)
        where = _where(config)
        if isinstance(where, Path) and has_weights(where) and not hasattr(said, "quantization_config"):
            _, told = kind.from_pretrained(
                where,
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **trusted,
                **(head or {}),
            )
            check_keys(config.source, model, told, new_head=head is not None)
        if not anyone:
            check_class(config.source, model)
    assert isinstance(model, PreTrainedModel)
    return model


def _attention(config: Model) -> str | None:
    """None lets transformers take sdpa where the class has it and eager elsewhere."""
    return None if config.attn_implementation == "auto" else config.attn_implementation


def _hub(config: Model, where: Path | str) -> dict[str, Any]:
    """What every call of transformers is told about a source."""
    revision = {} if isinstance(where, Path) else {"revision": config.revision or "main"}
    return {"trust_remote_code": config.trust_remote_code, **revision}


@contextmanager
def _without_report() -> Iterator[None]:
    """No table on the screen of what is missing: we refuse it, in one line."""
    logger = logging.getLogger("transformers.modeling_utils")

    def other(line: logging.LogRecord) -> bool:
        return not any(words in line.getMessage() for words in ("LOAD REPORT", "tied weights mapping"))

    logger.addFilter(other)  # another level would bring other lines
    try:
        yield
    finally:
        logger.removeFilter(other)


@contextmanager
def _complaining(config: Model) -> Iterator[None]:
    """What goes wrong in a library as UsageError in one line; memory and disks that are full are no model's fault."""
    try:
        yield
    except (UsageError, RunError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if disk_trouble(error) or ("alloc" in str(error) and "memory" in str(error)):
            raise
        raise UsageError(_complaint(config, error)) from error


def _settle_tying(config: Model, model: Any) -> None:
    """Let the config of a model whose vocabulary projection is not the embedding say so, as the weights do."""
    out = model.get_output_embeddings()
    said: Any = model.config.get_text_config()
    if out is not None and getattr(said, "tie_word_embeddings", False):
        inside = model.get_input_embeddings().weight
        if not out.weight.is_meta and out.weight.data_ptr() != inside.data_ptr():
            log.warning("%s says tie_word_embeddings, and its weights have two matrices: both are kept", config.source)
            said.tie_word_embeddings = False


def _check_code(config: Model, said: PreTrainedConfig) -> None:
    """UsageError for layers of unequal width, which the stock classes cannot build, without leave to run own code."""
    if getattr(said, KEPT_HIDDEN_SIZE, None) is not None and not config.trust_remote_code:
        raise UsageError(
            f"model.trust_remote_code: false, but {config.source!r} lost hidden channels, which its own code builds"
        )
    if getattr(said, "is_heterogeneous", False) and not config.trust_remote_code:
        raise UsageError(
            f"model.trust_remote_code: false, but the layers of {config.source!r} have unequal widths, "
            "which its own code builds"
        )


def _complaint(config: Model, error: Exception) -> str:
    text = str(error).strip()
    if "trust_remote_code" in text and not config.trust_remote_code:
        return f"model.source: {config.source!r} brings its own code, model.trust_remote_code=true runs it"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reason = " ".join(lines[:2] if lines and re.search(r"(:|for field '\w+')$", lines[0]) else lines[:1])
    if type(error).__name__ == "UnpicklingError":
        return f"model.source: {config.source!r} has weights (.bin) that are broken or hold more than tensors"
    if not isinstance(error, OSError | ValueError | ImportError) or not reason:
        reason = f"{type(error).__name__}: {reason}".rstrip(": ")  # which says little by itself, as in KeyError: 'x'
    if "ttention" in reason and config.attn_implementation != "auto":
        return (
            f"model.attn_implementation: {config.attn_implementation!r} is nothing for this model, use auto: {reason}"
        )
    return f"model.source: {config.source!r} cannot be loaded: {reason}"


def _stated_head(config: PreTrainedConfig) -> Any:
    """The auto class of the first architecture in a config, a language model's where there is none."""
    _, known, head = (config.architectures or [""])[0].rpartition("For")
    kind = getattr(transformers, f"AutoModelFor{head if known else 'CausalLM'}", None)
    if kind is None:
        raise UsageError(f"model.source: no auto class of transformers loads {config.architectures}")
    return kind


def positions(config: PreTrainedConfig) -> int | None:
    """The longest sequence that a model was made for, in tokens; None where its config states none."""
    most: int | None = getattr(config, "max_position_embeddings", None)
    if most is not None and config.model_type in COUNTING_FROM_PADDING:
        return most - int(config.pad_token_id or 0) - 1
    return most


def head_of(task: Task) -> Any:
    """The auto class whose models have the head that a task needs."""
    if isinstance(task, Classification):
        return AutoModelForSequenceClassification
    return AutoModelForQuestionAnswering if isinstance(task, QuestionAnswering) else AutoModelForCausalLM


def _where(config: Model) -> Path | str:
    path = locate_model(config.source)
    if path is not None and path.is_file() and path.suffix == ".gguf":
        check_model(config.source, path)
        return converted(path)
    if path is None and config.source.endswith(".gguf"):
        owner, name, file = config.source.split("/", 2)
        return converted(Path(hf_hub_download(f"{owner}/{name}", file, revision=config.revision)))
    return path or config.source
