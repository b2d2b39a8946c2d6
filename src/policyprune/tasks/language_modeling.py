"""Next-token prediction: calibration sequences, from a corpus or a caller, the test text, and where BOS stands."""

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.schema import Calibration, Chat, LanguageModeling, Text
from policyprune.errors import UsageError
from policyprune.models.sequences import longest_sequence, token_losses
from policyprune.tasks.chat import template_of
from policyprune.tasks.corpora import Document, calibration_documents, test_documents
from policyprune.tasks.task import check_positions
from policyprune.tasks.text_sources import TextSources, sources_of

SEPARATOR = "\n\n"
BATCH = 64  # texts that are tokenised at a time
log = logging.getLogger(__name__)
BOS_WINDOWS, BOS_LENGTH = 8, 128  # what `where_bos_stands` looks at; the length counts the BOS token
MARGIN = 0.1  # nats per token, a tenth of the perplexity: SmolLM2 gains 0.00 to 0.02 (noise: 0.02), Gemma 3 gains 2


@dataclass(frozen=True)
class Sequences:
    """Calibration sequences of one length, `ids` (N, L) int64: a `Task` for the search."""

    ids: Tensor
    protocol: dict[str, Any] = field(default_factory=dict)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sequence, all the same, (N,) int64."""
        return torch.full((len(self.ids),), self.ids.shape[1])

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        """Arguments of the model's forward: rows (B,)."""
        return {"input_ids": self.ids[rows]}

    def loss(self, model: PreTrainedModel, rows: Tensor) -> Tensor:
        """Mean next-token loss of each sequence: rows (B,) -> (B,) float32 on the model's device."""
        return token_losses(model, self.ids[rows].to(model.device, non_blocking=True)).mean(-1)


def sequences(
    data: Sequence[str] | Sequence[Sequence[int]] | Tensor,
    tokenizer: PreTrainedTokenizerBase | None = None,
    length: int | None = None,
    bos: int | None = None,
    separator: str = SEPARATOR,
) -> Sequences:
    """Sequences from texts, from lists of token ids, or from a tensor (N, L) of token ids, which stays as it is.

    Texts and lists are packed one behind the other and cut into sequences of `length` tokens; a rest that fills no
    sequence is dropped. `bos` is a token to put in front of each sequence, within its length; `separator` stands behind
    each text. UsageError for data that fill no sequence, and for what is missing to cut them.
    """
    if isinstance(data, Tensor):
        if data.dim() != 2 or data.is_floating_point() or data.numel() == 0:
            raise UsageError(f"data: a tensor of token ids has the shape (N, L), not {tuple(data.shape)} {data.dtype}")
        return Sequences(data.long().cpu())
    if length is None:
        raise UsageError("length: texts and lists of token ids are cut into sequences, say of how many tokens")
    ids = cut(torch.tensor(_tokens(data, tokenizer, separator), dtype=torch.long), length, bos)
    if not len(ids):
        raise UsageError(f"length: the data are shorter than one sequence of {length} tokens")
    return Sequences(ids)


def _tokens(
    documents: Sequence[str] | Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase | None, separator: str
) -> list[int]:
    texts = [document for document in documents if isinstance(document, str)]
    if not texts:
        return list(chain.from_iterable(documents))  # type: ignore[arg-type]
    if tokenizer is None or len(texts) < len(documents):
        raise UsageError("data: texts need a tokenizer, and cannot be mixed with token ids")
    return pack(tokenizer, texts, separator)


def pack(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], separator: str = SEPARATOR, most: int | None = None
) -> list[int]:
    """The first `most` tokens, or all, of texts one behind the other, each followed by the separator's tokens."""
    between = encode(tokenizer, [separator])[0]
    tokens: list[int] = []
    rest = iter(texts)
    while (most is None or len(tokens) < most) and (batch := list(islice(rest, BATCH))):
        tokens += chain.from_iterable([*document, *between] for document in encode(tokenizer, batch))
    return tokens[:most]


def cut(tokens: Tensor, length: int, bos: int | None) -> Tensor:
    """Tokens (T,) in sequences (N, length) without overlap, with `bos` as the first token of each where it is given."""
    fresh = length if bos is None else length - 1
    count = len(tokens) // fresh
    return led_by(bos, tokens[: count * fresh].view(count, fresh))


def led_by(bos: int | None, rows: Tensor) -> Tensor:
    """Rows (N, L) with the token `bos` in front of each, (N, L + 1); as they are where it is None."""
    return rows if bos is None else torch.cat([torch.full((len(rows), 1), bos), rows], dim=1)


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool = False) -> list[list[int]]:
    """Token ids of each text; `special`: with the tokens that the tokenizer adds by itself."""
    encoded = tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
    assert isinstance(encoded, list)
    return encoded


@dataclass(frozen=True, kw_only=True)
class TextTask(Sequences):
    """Calibration sequences and the tokens of the test text (T,); `protocol` says how both were made.

    `bos` is the token in front of each test window, which each calibration sequence has too; None: they begin anywhere.
    `calibrated_on` has the documents that calibration sequences were cut from (`Document.letters`), `sources` where
    there are more.
    """

    test: Tensor
    bos: int | None
    calibrated_on: frozenset[str] = frozenset()
    sources: TextSources | None = None

    def check(self, model: PreTrainedModel) -> list[str]:
        """Nothing to say: any causal model can be measured on text."""
        return []

    def windows(self, length: int, max_tokens: int | None) -> Tensor:
        """Test windows (N, length) without overlap, of at most `max_tokens` tokens in all; UsageError for none."""
        if not len(self.test):
            raise UsageError(
                "task.test_fraction: no document fell into the held-out part, give task.test_files or a larger share"
            )
        return test_windows(self.test, length, self.bos, max_tokens, "the test split")


def test_windows(tokens: Tensor, length: int, bos: int | None, max_tokens: int | None, of: str) -> Tensor:
    """Windows (N, length) of a text's tokens (T,), led by `bos` where it is given, of at most `max_tokens` in all.

    UsageError, naming the text, for none.
    """
    windows = cut(tokens, length, bos)
    if not len(windows):
        raise UsageError(f"evaluation.lengths: {length} is more than the {len(tokens)} tokens of {of}, use less")
    return windows if max_tokens is None else windows[: max(1, max_tokens // length)]


def check_model(config: Text, model: PreTrainedModel) -> None:
    """UsageError for calibration sequences that are longer than the model's positions."""
    check_positions(model, {"task.calibration.length": config.calibration.length})


def build(config: Text, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> TextTask:
    """Read, split and tokenise the corpora; UsageError when they are too small for what is asked.

    `model` is asked where `task.bos=auto` leaves open how its sequences and windows begin.
    """
    sources = sources_of(config)
    tests = [test_documents(corpus, tokenizer) for corpus in sources.tests]
    keys = keys_of(chain.from_iterable(tests))
    where, measured = _where_bos(config.bos, sources, tokenizer, model, keys)
    measure = sources.tests[0]
    text = measure.separator.join(document.text for document in tests[0])
    protocol = {
        "corpus": config.name,
        **_origin(config, sources, tokenizer),
        "separator": measure.separator,
        "bos": where,
        **({"bos_measured": measured} if measured else {}),
        "tokenizer": hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:12],
        "calibration": {
            "split": sources.training[0].calibration_split,
            "count": config.calibration.count,
            "length": config.calibration.length,
            "seed": config.calibration.drawn_by,
        },
        "test_split": measure.test_split if measure.source or measure.test_source else "held-out documents",
        "test_text": hash_of(text),
    }
    bos = int(tokenizer.bos_token_id) if where == "window" else None
    ids, read = _calibration(config.calibration, sources, tokenizer, keys, bos)
    test = test_tokens(tokenizer, text, where)
    return TextTask(ids, protocol, test=test, bos=bos, calibrated_on=read, sources=sources)


def _origin(config: Text, sources: TextSources, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Where the text came from, for the record."""
    if isinstance(config, LanguageModeling):
        return _of_corpus(config, tokenizer)
    counts = sources.shares(config.calibration.count)
    parts = [
        {"corpus": corpus.name, "sequences": count, **_of_corpus(corpus, tokenizer)}
        for corpus, count in zip(sources.training, counts, strict=True)
    ]
    return {"parts": parts, "test_of": sources.tests[0].name}


def _of_corpus(config: LanguageModeling, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "source": config.source or config.files,
        "subset": config.subset,
        **({"test_source": config.test_source, "test_subset": config.test_subset} if config.test_source else {}),
        **({"template": template_of(tokenizer, config.template).digest} if isinstance(config, Chat) else {}),
    }


def test_tokens(tokenizer: PreTrainedTokenizerBase, text: str, bos: str) -> Tensor:
    """The tokens of a test text (T,) int64, with BOS in front where `bos` is `text`, and one where it has its own."""
    tokens = encode(tokenizer, [text], special=bos == "text")[0]
    twice = bos == "text" and tokens[:2] == [tokenizer.bos_token_id] * 2
    return torch.tensor(tokens[twice:], dtype=torch.long)


def hash_of(text: str) -> str:
    """What a record calls a test text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def test_keys(sources: TextSources, tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """What the test documents are known by, so that no other stage looks at them."""
    return keys_of(chain.from_iterable(test_documents(corpus, tokenizer) for corpus in sources.tests))


def keys_of(documents: Iterable[Document]) -> set[str]:
    """The keys of documents that hold text."""
    return {document.key for document in documents if document.text.strip()}


@torch.no_grad()
def where_bos_stands(model: PreTrainedModel, bos: int, tokens: Tensor) -> tuple[str, dict[str, float | int]]:
    """`window` where the BOS token in front lowers the model's loss by more than the margin, else `text`.

    Also both mean losses (nats). They are of the same predicted tokens, in windows of `tokens` (T,), T >= 2, which has
    no BOS.
    """
    width = min(BOS_LENGTH, longest_sequence(model.config) or BOS_LENGTH, len(tokens) + 1) - 1
    rows = cut(tokens, width, None)[:BOS_WINDOWS]
    without = float(token_losses(model, rows.to(model.device)).double().mean())
    with_bos = float(token_losses(model, led_by(bos, rows).to(model.device))[:, 1:].double().mean())
    matters = math.isfinite(with_bos) and not without - with_bos <= MARGIN
    measured = {"loss_with_bos": with_bos, "loss_without_bos": without, "tokens": len(rows) * (width - 1)}
    return "window" if matters else "text", measured


def _where_bos(
    choice: str,
    sources: TextSources,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel | None,
    held_out: set[str],
) -> tuple[str, dict[str, float | int]]:
    """The choice with `auto` decided, and both losses of the model on the first corpus, whatever the choice.

    They are of the same text whatever the run's seed.
    """
    if tokenizer.bos_token_id is None:
        if choice == "window":
            raise UsageError("task.bos: 'window', but this tokenizer has no BOS token, use text or none")
        return ("none" if choice == "auto" else choice), {}
    if model is None:
        assert choice != "auto", "only a model can tell where BOS has to stand"
        return choice, {}
    corpus = sources.training[0]
    seeded = replace(corpus, calibration=replace(corpus.calibration, seed=0))
    tokens, _ = _calibration_tokens(seeded, tokenizer, held_out, BOS_WINDOWS * BOS_LENGTH)
    if len(tokens) < 2:
        key = "source" if corpus.source else "files"
        raise UsageError(f"task.{key}: no text is left for calibration, all of it is held out for the test")
    chosen, measured = where_bos_stands(model, int(tokenizer.bos_token_id), torch.tensor(tokens))
    losses = measured["loss_with_bos"], measured["loss_without_bos"]
    option = f"auto: {chosen}" if choice == "auto" else choice
    log.info("task.bos=%s, the model's loss is %.3f with BOS in front of windows, %.3f without", option, *losses)
    return (chosen if choice == "auto" else choice), measured


def _calibration(
    calibration: Calibration,
    sources: TextSources,
    tokenizer: PreTrainedTokenizerBase,
    held_out: set[str],
    bos: int | None,
) -> tuple[Tensor, frozenset[str]]:
    """Sequences (count, length) cut from the packed documents and shuffled, led by `bos` where it is given.

    Also the documents that were read for them.
    """
    length = calibration.length
    fresh = length if bos is None else length - 1
    parts, read = list[Tensor](), frozenset[str]()
    for corpus, count in zip(sources.training, sources.shares(calibration.count), strict=True):
        tokens, documents = _calibration_tokens(corpus, tokenizer, held_out, count * fresh)
        if len(tokens) < count * fresh:
            holder = "the corpus" if len(sources.training) == 1 else repr(corpus.name)
            raise UsageError(
                f"task.calibration.count: {count} sequences of {length} tokens are "
                f"more than {holder} holds, use at most {len(tokens) // fresh}"
            )
        parts.append(cut(torch.tensor(tokens, dtype=torch.long), length, bos))
        read |= documents
    order = torch.randperm(calibration.count, generator=torch.Generator().manual_seed(calibration.drawn_by))
    return torch.cat(parts)[order], read


def _calibration_tokens(
    config: LanguageModeling, tokenizer: PreTrainedTokenizerBase, held_out: set[str], most: int
) -> tuple[list[int], frozenset[str]]:
    """The first `most` tokens, or all there are, of the packed calibration documents, and which ones were read."""
    read = set()

    def texts() -> Iterator[str]:
        for document in calibration_documents(config, held_out, tokenizer):
            read.add(document.letters())
            yield document.text

    tokens = pack(tokenizer, texts(), config.separator, most)
    return tokens, frozenset(read)
