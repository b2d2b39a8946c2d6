"""What a caller has in memory as a task: texts, token ids, or labelled examples that are tensors already."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.schema import Text
from policyprune.errors import UsageError
from policyprune.tasks.chat import messages_of, template_of
from policyprune.tasks.classification import losses
from policyprune.tasks.labelled import Encoded
from policyprune.tasks.language_modeling import TextTask, build, check_model, where_bos_stands
from policyprune.tasks.packing import SEPARATOR, Sequences, sequences
from policyprune.tasks.question_answering import span_losses
from policyprune.tasks.tables import NoTableError
from policyprune.tasks.task import CalibrationData, check_positions

ANSWERS = ("start_positions", "end_positions")
LABELS = ("labels", *ANSWERS)
IGNORED = -100  # a label that transformers leaves out of the loss

Texts = str | Sequence[str]
TokenIds = Tensor | Sequence[Sequence[int]]
Labelled = Mapping[str, Tensor] | Iterable[Mapping[str, Tensor]]
Conversations = Sequence[Sequence[Mapping[str, str]]]
Data = Texts | Conversations | TokenIds | Labelled | CalibrationData


@dataclass(frozen=True)
class Cutting:
    """How texts become sequences: tokens of each, and whether the BOS token leads each of them.

    Without a choice BOS leads where that lowers the model's loss by more than 0.1 nats per token.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    length: int = 128
    bos: bool | None = None


def in_memory(data: Data, model: PreTrainedModel, cutting: Cutting) -> CalibrationData:
    """The data as a task of `model`.

    Texts are packed and cut into sequences of one length, a rest that fills none is dropped, and so are lists of token
    ids; a tensor of ids (N, L) stays as it is. A conversation is a list of messages (`role`, `content`), which the chat
    template of the tokenizer makes a text of. A dict of tensors, or batches of them, is taken as labelled examples
    (`labelled`). What has `lengths`, `inputs` and `loss` is a task already. UsageError for anything else.
    """
    if isinstance(data, Sequences | LabelledBatches):
        return data
    if isinstance(data, CalibrationData):
        return OwnTask(data)
    if isinstance(data, str):
        data = [data]
    if isinstance(data, Tensor):
        return _fitting(sequences(data), model, cutting.bos)
    if isinstance(data, Mapping):
        return _labelled(data, model, cutting)
    try:
        items: list[Any] = list(data)
    except TypeError:
        raise UsageError(f"data: {type(data).__name__} is neither texts nor token ids nor batches") from None
    if items and isinstance(items[0], Mapping):
        if {"role", "content"} <= set(items[0]) or "messages" in items[0]:
            raise UsageError(
                "data: messages that are in no conversation, give a list of conversations: lists of messages"
            )
        return _labelled(items, model, cutting)
    if items and isinstance(items[0], int | bytes):
        raise UsageError(f"data: a list of {type(items[0]).__name__}, give texts (str) or a list of token ids for each")
    if items and isinstance(items[0], str):
        _check_language_model(model)
        return _fitting(_cut(items, model, cutting), model)
    if any(isinstance(item, list | tuple) and len(item) and isinstance(item[0], Mapping) for item in items):
        _check_language_model(model)
        return _fitting(_cut(_set(items, cutting.tokenizer), model, cutting, separator=""), model)
    return _fitting(sequences(items, length=cutting.length), model, cutting.bos)


def _set(conversations: list[Any], tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """Conversations as the tokenizer's chat template sets them."""
    if tokenizer is None or tokenizer.chat_template is None:
        raise UsageError("data: conversations need a tokenizer with a chat template (tokenizer.chat_template)")
    template, texts = template_of(tokenizer), []
    for number, content in enumerate(conversations, 1):
        where = f"conversation {number}"
        try:
            texts.append(template.text(messages_of(content, where), where))
        except NoTableError as error:
            raise UsageError(f"data: {error}") from error
    return texts


def text_task(
    config: Text, tokenizer: PreTrainedTokenizerBase | None, model: PreTrainedModel, bos: bool | None = None
) -> TextTask:
    """The data of a text task, whose protocol says whether BOS leads each sequence; `bos` decides `auto`."""
    if tokenizer is None:
        raise UsageError(f"tokenizer: None, but {type(config).__name__} is read by a tokenizer")
    _check_language_model(model)
    check_model(config, model)
    if bos is not None and config.bos == "auto":
        config = replace(config, bos="window" if bos else "none")
    task = build(config, tokenizer, model)
    return replace(task, protocol={**task.protocol, "bos": task.bos is not None})


def _cut(texts: list[str], model: PreTrainedModel, cutting: Cutting, separator: str = SEPARATOR) -> Sequences:
    """Sequences of texts, led by BOS where it is wanted or where it helps."""
    tokenizer, length = cutting.tokenizer, cutting.length
    plain = sequences(texts, tokenizer, length, separator=separator)
    bos: int | None = None if tokenizer is None else tokenizer.bos_token_id
    if bos is None or cutting.bos is False:
        if cutting.bos:
            raise UsageError("bos: True, but this tokenizer has no BOS token")
        return Sequences(plain.ids, {"bos": False})
    leads, measured = True, dict[str, float | int]()
    if cutting.bos is None:
        where, measured = where_bos_stands(model, bos, plain.ids.flatten())
        leads = where == "window"
    ids = sequences(texts, tokenizer, length, bos, separator).ids if leads else plain.ids
    return Sequences(ids, {"bos": leads, **({"bos_measured": measured} if measured else {})})


def _fitting(task: Sequences, model: PreTrainedModel, bos: bool | None = None) -> Sequences:
    """The sequences, as far as the model can take them. UsageError for a choice of BOS that token ids do not have."""
    _check_language_model(model)
    if bos is not None:
        raise UsageError(f"bos: {bos}, but token ids are taken as they are; it is for texts")
    check_positions(model, {"length": task.ids.shape[1]})
    _check_ids(task.ids, model)
    return task


def _labelled(data: Labelled, model: PreTrainedModel, cutting: Cutting) -> "LabelledBatches":
    """Labelled examples that fit the model. UsageError for names, labels and ids that it does not take."""
    task = labelled(data, _pad(model, cutting.tokenizer))
    known = inspect.signature(type(model).forward).parameters
    unknown = sorted({*task.encoded.inputs(torch.arange(1))} - set(known))
    if unknown:
        raise UsageError(f"data: {unknown[0]!r} is no argument of {type(model).__name__}")
    _check_ids(task.encoded.inputs(torch.arange(len(task.lengths)))["input_ids"], model)
    labels = task.targets.get("labels")
    if labels is None or not task.classes:
        return task
    if model.get_output_embeddings() is not None:
        raise UsageError(f"data: a label for each example, but {type(model).__name__} needs one for each token")
    classes, low, high = model.config.num_labels or 1, float(labels.min()), float(labels.max())
    if classes > 1 and not 0 <= low <= high < classes:
        raise UsageError(f"data: labels from {low:g} to {high:g}, this model has classes 0 to {classes - 1}")
    return task


def _check_language_model(model: PreTrainedModel) -> None:
    if model.get_output_embeddings() is None:
        raise UsageError(
            f"data: texts and token ids are for language models, {type(model).__name__} needs labelled examples: "
            "a dict of tensors with input_ids, attention_mask and labels, or batches of such"
        )


def _check_ids(ids: Tensor, model: PreTrainedModel) -> None:
    table = model.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    rows = len(table)
    if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < rows):
        raise UsageError(f"data: token ids from {int(ids.min())} to {int(ids.max())}, this model has 0 to {rows - 1}")


def _pad(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> int:
    stated = model.config.pad_token_id if tokenizer is None else tokenizer.pad_token_id
    return int(stated or 0)


@dataclass(frozen=True)
class OwnTask:
    """A caller's task, whose losses may be of any data type."""

    data: CalibrationData

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sequence without padding, (N,) int64."""
        return torch.as_tensor(self.data.lengths)

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        """Arguments of the model's forward: rows (B,)."""
        return self.data.inputs(rows)

    def loss(self, model: PreTrainedModel, rows: Tensor) -> Tensor:
        """The caller's loss: rows (B,) -> (B,) float32."""
        losses = self.data.loss(model, rows)
        if not isinstance(losses, Tensor) or losses.shape != rows.shape:
            given = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise UsageError(f"data.loss: it gave {given} for {len(rows)} sequences, each needs a loss: ({len(rows)},)")
        return losses.float()


@dataclass(frozen=True)
class LabelledBatches:
    """Padded examples with labels: a `Task`.

    `targets` are `labels`: (N,) class numbers or scores, (N, classes) zeros and ones of several classes at once, or
    (N, L) tokens; or they are `start_positions` and `end_positions` (N,) of answers.
    """

    encoded: Encoded
    targets: dict[str, Tensor]
    protocol: dict[str, Any] = field(default_factory=dict)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each example without padding, (N,) int64."""
        return self.encoded.lengths

    @property
    def classes(self) -> bool:
        """Whether each example has one label: a class, or a score."""
        return "labels" in self.targets and self.targets["labels"][0].numel() == 1

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        """Arguments of the model's forward: rows (B,)."""
        return self.encoded.inputs(rows)

    def loss(self, model: PreTrainedModel, rows: Tensor) -> Tensor:
        """The model's own loss of each example: rows (B,) -> (B,) float32. Answers are not looked for in padding."""
        inputs = {name: tensor.to(model.device) for name, tensor in self.inputs(rows).items()}
        out = model(**inputs)
        if "labels" not in self.targets:
            spans = torch.stack([self.targets[name][rows].long() for name in ANSWERS], 1)
            return span_losses(out, spans, inputs["attention_mask"])
        logits, labels = out.logits, self.targets["labels"][rows].to(out.logits.device)
        if logits.dim() == 3:
            return _token_loss(logits, labels[:, : logits.shape[1]], shift=model.can_generate())
        if labels.dim() == 2 and labels.shape[1] > 1:
            wanted = labels.float()
            return functional.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none").mean(-1)
        return losses(logits, labels.view(-1) if logits.shape[-1] == 1 else labels.view(-1).long())


def labelled(data: Labelled, pad: int = 0) -> LabelledBatches:
    """Examples from tensors by name, each (N, ...), or from batches of such tensors, as a data loader gives.

    They have `input_ids` and `labels` (or `start_positions` and `end_positions`), and may have `attention_mask` and
    what else the model's forward takes. Batches of other widths are padded on the right, ids with `pad`. UsageError
    for examples without labels, and for padding that is not on the right.
    """
    batches = [data] if isinstance(data, Mapping) else list(data)
    wanted = {"input_ids"} | (set(ANSWERS) if "start_positions" in batches[0] else {"labels"})
    for batch in batches:
        missing = sorted(wanted - set(batch))
        if missing:
            raise UsageError(f"data: a batch has no {missing[0]!r}, only {', '.join(map(str, batch))}")
    names = [name for name in batches[0] if all(name in batch for batch in batches)]
    fills = {"input_ids": pad, "labels": IGNORED}
    joined = {name: _joined([torch.as_tensor(batch[name]) for batch in batches], fills.get(name, 0)) for name in names}
    sizes = {name: len(tensor) for name, tensor in joined.items()}
    if len(set(sizes.values())) > 1:
        raise UsageError(
            f"data: as many of all are needed, there are {', '.join(f'{n} {k}' for k, n in sizes.items())}"
        )
    if "attention_mask" not in joined:
        if len({len(batch["input_ids"][0]) for batch in batches}) > 1:
            raise UsageError("data: batches of several widths need an attention_mask, which says what is padding")
        joined["attention_mask"] = torch.ones_like(joined["input_ids"])
    mask = joined["attention_mask"].bool()
    lengths = mask.sum(1)
    if not bool(lengths.all()) or not torch.equal(mask, torch.arange(mask.shape[1]) < lengths[:, None]):
        raise UsageError("data: the attention_mask begins with padding or has gaps, pad on the right")
    inputs = {name: tensor for name, tensor in joined.items() if name not in LABELS}
    return LabelledBatches(Encoded(inputs, lengths), {name: joined[name] for name in LABELS if name in wanted})


def _joined(parts: list[Tensor], fill: int) -> Tensor:
    """Tensors (B, ...) behind one another on the CPU, (N, ...), as wide as the widest of them."""
    if parts[0].dim() > 1:
        widest = max(part.shape[-1] for part in parts)
        parts = [functional.pad(part, (0, widest - part.shape[-1]), value=fill) for part in parts]
    return torch.cat([part.detach().cpu() for part in parts])


def _token_loss(logits: Tensor, labels: Tensor, shift: bool) -> Tensor:
    """Mean loss of the labelled tokens of each sequence, of the next one with `shift`: (B, L, V), (B, L) -> (B,)."""
    logits, labels = (logits[:, :-1], labels[:, 1:]) if shift else (logits, labels)
    each = cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return each.sum(1) / (labels != IGNORED).sum(1).clamp(min=1)
