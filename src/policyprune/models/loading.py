"""Load the dense model and its tokenizer from any source, onto the device and in the dtype that the config asks for."""

import hashlib
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

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
    modeling_gguf_pytorch_utils,
)

from policyprune.config.schema import Classification, Model, QuestionAnswering, Task
from policyprune.errors import UsageError
from policyprune.models.checks import (
    check_class,
    check_code,
    check_config,
    check_finite,
    check_keys,
    check_tokens,
)
from policyprune.models.device import device_of, dtype_of
from policyprune.models.library_messages import as_usage_error, quiet, without_load_report
from policyprune.models.sequences import set_padding_token
from policyprune.progress import bars_of
from policyprune.storage.files import cache_folder, made_once, write_folder
from policyprune.storage.sources import check_model, has_weights, locate_model

log = logging.getLogger(__name__)


def load(
    config: Model, task: Task, new_head: dict[str, Any] | None = None, any_class: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the dense model with the head that the task needs, in eval mode and without gradients, and its tokenizer.

    `new_head` are options of a head that is yet to be trained. `any_class`: also a model whose class is its own.
    """
    model, tokenizer = load_as(config, head_of(task), new_head, any_class)
    if isinstance(task, Classification):
        set_padding_token(model, tokenizer)
    return model, tokenizer


def load_as(
    config: Model, auto_class: Any, new_head: dict[str, Any] | None = None, any_class: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The same with an auto class of transformers instead of a task.

    UsageError naming model.source for whatever transformers cannot load, and for weights that are not those of the
    model: some that are missing, too many, or no numbers.
    """
    device = device_of(config)
    stated = read_config(config)
    with as_usage_error(config), without_load_report():
        location = _location(config)
        if isinstance(location, Path):
            check_model(config.source, location)
        check_code(config, stated)
        if getattr(stated, "auto_map", None) and not config.trust_remote_code:
            log.warning("%s brings its own code, which is not run: transformers has a class for it", config.source)
        tokenizer = AutoTokenizer.from_pretrained(location, **_hub_options(config, location))
        model, loading_info = auto_class.from_pretrained(
            location,
            dtype=dtype_of(config, device),
            attn_implementation=_attention(config),
            device_map=config.device_map,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **_hub_options(config, location),
            **(new_head or {}),
        )
        check_keys(config.source, model, loading_info, new_head=new_head is not None)
        check_tokens(config.source, model, tokenizer)
        if not any_class:
            check_class(config.source, model)
        _correct_tying(config, model)
    if config.device_map is None:
        model.to(device)
    check_finite(config.source, model)
    model.eval().requires_grad_(False)
    return model, tokenizer


def skeleton(
    config: Model, task: Task, new_head: dict[str, Any] | None = None, any_class: bool = False
) -> PreTrainedModel:
    """The model's structure without its weights (on the meta device), from its config alone.

    What `load` refuses is refused here too, as far as it can be told without reading weights.
    """
    return skeleton_as(config, head_of(task), new_head, any_class)


def skeleton_as(
    config: Model, auto_class: Any = None, new_head: dict[str, Any] | None = None, any_class: bool = False
) -> PreTrainedModel:
    """The same with an auto class of transformers; without one, that of the architecture which the config names."""
    stated = read_config(config)
    return structure(config, stated, auto_class or _stated_head(stated), new_head, any_class)


def read_config(config: Model) -> PreTrainedConfig:
    """The model's own config; no weights are read, save of a GGUF file, which is converted (once)."""
    quiet()
    with as_usage_error(config):
        location = _location(config)
        if isinstance(location, Path):
            check_model(config.source, location, weights=False)
        stated = AutoConfig.from_pretrained(location, **_hub_options(config, location))
    assert isinstance(stated, PreTrainedConfig)
    check_config(config.source, stated)
    return stated


def structure(
    config: Model,
    stated: PreTrainedConfig,
    auto_class: Any,
    new_head: dict[str, Any] | None = None,
    any_class: bool = False,
) -> PreTrainedModel:
    """A model of an auto class on the meta device, from the config that it states.

    It is compared with the names of the weights where these are on this disk.
    """
    check_code(config, stated)
    with as_usage_error(config), without_load_report():
        trusted = {"trust_remote_code": config.trust_remote_code}
        with torch.device("meta"):
            model = auto_class.from_config(stated, attn_implementation=_attention(config), **trusted)
        location = _location(config)
        if isinstance(location, Path) and has_weights(location) and not hasattr(stated, "quantization_config"):
            _, loading_info = auto_class.from_pretrained(
                location,
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **trusted,
                **(new_head or {}),
            )
            check_keys(config.source, model, loading_info, new_head=new_head is not None)
        if not any_class:
            check_class(config.source, model)
    assert isinstance(model, PreTrainedModel)
    return model


def head_of(task: Task) -> Any:
    """The auto class whose models have the head that a task needs."""
    if isinstance(task, Classification):
        return AutoModelForSequenceClassification
    return AutoModelForQuestionAnswering if isinstance(task, QuestionAnswering) else AutoModelForCausalLM


def _stated_head(stated: PreTrainedConfig) -> Any:
    """The auto class of the first architecture in a config, a language model's where there is none."""
    _, separator, head = (stated.architectures or [""])[0].rpartition("For")
    auto_class = getattr(transformers, f"AutoModelFor{head if separator else 'CausalLM'}", None)
    if auto_class is None:
        raise UsageError(f"model.source: no auto class of transformers loads {stated.architectures}")
    return auto_class


def _location(config: Model) -> Path | str:
    """The folder of the checkpoint, or the hub id; a GGUF file is converted into a folder."""
    path = locate_model(config.source)
    if path is not None and path.is_file() and path.suffix == ".gguf":
        check_model(config.source, path)
        return converted(path)
    if path is None and config.source.endswith(".gguf"):
        owner, name, file = config.source.split("/", 2)
        return converted(Path(hf_hub_download(f"{owner}/{name}", file, revision=config.revision)))
    return path or config.source


def _hub_options(config: Model, location: Path | str) -> dict[str, Any]:
    """What every call of transformers is told about a source."""
    revision = {} if isinstance(location, Path) else {"revision": config.revision or "main"}
    return {"trust_remote_code": config.trust_remote_code, **revision}


def _attention(config: Model) -> str | None:
    """None lets transformers take sdpa where the class has it and eager elsewhere."""
    return None if config.attn_implementation == "auto" else config.attn_implementation


def _correct_tying(config: Model, model: Any) -> None:
    """Let the config of a model whose vocabulary projection is not the embedding say so, as the weights do."""
    head = model.get_output_embeddings()
    stated: Any = model.config.get_text_config()
    if head is not None and getattr(stated, "tie_word_embeddings", False):
        embedding = model.get_input_embeddings().weight
        if not head.weight.is_meta and head.weight.data_ptr() != embedding.data_ptr():
            log.warning("%s says tie_word_embeddings, and its weights have two matrices: both are kept", config.source)
            stated.tie_word_embeddings = False


def converted(file: Path) -> Path:
    """Return a directory with the float32 checkpoint and tokenizer of a GGUF file; made whole, once, kept for later.

    Other processes that want the same wait for the one that makes it.
    """
    state = file.stat()
    made_from = (file.resolve(), state.st_size, state.st_mtime_ns, version("transformers"))
    identity = hashlib.sha256(":".join(map(str, made_from)).encode()).hexdigest()
    target = cache_folder() / "gguf" / f"{file.stem}-{identity[:12]}"
    return made_once(target, lambda folder: _convert(file, folder))


def _convert(file: Path, target: Path) -> None:
    ours = bars_of(modeling_gguf_pytorch_utils, title=f"converting {file.name}", unit="tensor")
    with write_folder(target) as scratch, ours:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
        )
        model, loading_info = loaded
        check_keys(str(file), model, loading_info)
        model.hf_quantizer = None  # the weights are plain float32 now, and may be saved as such
        del model.config.quantization_config
        model.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(scratch)
