"""Load the dense model and its tokenizer from any source, onto the device and in the dtype that the config asks for."""

import logging
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
from policyprune.errors import UsageError
from policyprune.models.gguf import converted
from policyprune.models.padding import settle_padding
from policyprune.models.precision import dtype_of
from policyprune.models.residual import KEPT
from policyprune.models.sources import locate


def device_of(config: Model) -> torch.device:
    """`auto` is cuda where there is one, else cpu. UsageError for a device that this machine lacks."""
    wanted = config.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"model.device: {config.device!r} is not on this machine, use auto or cpu") from error
    return device


def quiet() -> None:
    """Leave the screen to our own progress bars, and to what somebody can act on."""
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # that the width of a layer is read from a config whose layers differ, which its own code allows on purpose
    logging.getLogger("transformers.integrations.heterogeneity.configuration_utils").setLevel(logging.ERROR)


def load(config: Model, task: Task, **head: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the dense model with the head that the task needs, in eval mode and without gradients, and its tokenizer.

    `head` are options of a head that is yet to be trained.
    """
    model, tokenizer = load_as(config, head_of(task), **head)
    if isinstance(task, Classification):
        settle_padding(model, tokenizer)
    return model, tokenizer


def load_as(config: Model, kind: Any, **head: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The same with an auto class of transformers instead of a task."""
    quiet()
    device = device_of(config)
    where = _where(config)
    hub: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if not isinstance(where, Path):
        hub["revision"] = config.revision or "main"
    try:
        _check_code(config, AutoConfig.from_pretrained(where, **hub))
        tokenizer = AutoTokenizer.from_pretrained(where, **hub)
        model = kind.from_pretrained(
            where,
            dtype=dtype_of(config, device),
            attn_implementation=config.attn_implementation,
            device_map=config.device_map,
            **hub,
            **head,
        )
    except UsageError:
        raise
    except (OSError, ImportError, ValueError) as error:
        raise UsageError(_complaint(config, error)) from error
    if config.device_map is None:
        model.to(device)  # type: ignore[arg-type]
    model.eval().requires_grad_(False)
    return model, tokenizer


def skeleton(config: Model, task: Task) -> PreTrainedModel:
    """The model's structure without its weights (on the meta device), from its config alone."""
    return skeleton_as(config, head_of(task))


def skeleton_as(config: Model, kind: Any = None) -> PreTrainedModel:
    """The same with an auto class of transformers; without one, that of the architecture which the config names."""
    said = stated(config)
    return structure(config, said, kind or _stated_head(said))


def stated(config: Model) -> PreTrainedConfig:
    """What the model's config says; no weights are read, save of a GGUF file, which is converted (once)."""
    quiet()
    where = _where(config)
    hub = {"revision": config.revision or "main"} if not isinstance(where, Path) else {}
    try:
        said = AutoConfig.from_pretrained(where, trust_remote_code=config.trust_remote_code, **hub)
    except (OSError, ValueError) as error:
        raise UsageError(_complaint(config, error)) from error
    assert isinstance(said, PreTrainedConfig)
    return said


def structure(config: Model, said: PreTrainedConfig, head: Any) -> PreTrainedModel:
    """A model of the auto class `head` on the meta device."""
    _check_code(config, said)
    with torch.device("meta"):
        model = head.from_config(said, trust_remote_code=config.trust_remote_code)
    assert isinstance(model, PreTrainedModel)
    return model


def _check_code(config: Model, said: PreTrainedConfig) -> None:
    """UsageError for layers of unequal width, which the stock classes cannot build, without leave to run own code."""
    if getattr(said, KEPT, None) is not None and not config.trust_remote_code:
        raise UsageError(
            f"model.trust_remote_code: false, but {config.source!r} lost hidden channels, which its own code builds"
        )
    if getattr(said, "is_heterogeneous", False) and not config.trust_remote_code:
        raise UsageError(
            f"model.trust_remote_code: false, but the layers of {config.source!r} have unequal widths, "
            "which its own code builds"
        )


def _complaint(config: Model, error: Exception) -> str:
    if "trust_remote_code" in str(error) and not config.trust_remote_code:
        return f"model.source: {config.source!r} brings its own code, model.trust_remote_code=true runs it"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
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
    return most


def head_of(task: Task) -> Any:
    """The auto class whose models have the head that a task needs."""
    if isinstance(task, Classification):
        return AutoModelForSequenceClassification
    return AutoModelForQuestionAnswering if isinstance(task, QuestionAnswering) else AutoModelForCausalLM


def _where(config: Model) -> Path | str:
    path = locate("model.source", config.source)
    if path is not None and path.is_file() and path.suffix == ".gguf":
        return converted(path)
    if path is None and config.source.endswith(".gguf"):
        owner, name, file = config.source.split("/", 2)
        return converted(Path(hf_hub_download(f"{owner}/{name}", file, revision=config.revision)))
    return path or config.source
