"""Next-token prediction: calibration sequences, from a corpus or a caller, the test text, and where BOS stands."""

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.schema import Calibration, Chat, Generated, LanguageModeling, Text
from policyprune.errors import UsageError
from policyprune.models.sequences import longest_sequence, token_losses
from policyprune.tasks.chat import template_of
from policyprune.tasks.corpora import Document, calibration_documents, test_documents
from policyprune.tasks.generated import ASKED, written_by
from policyprune.tasks.packing import Sequences, cut, encode, led_by, pack
from policyprune.tasks.task import check_positions
from policyprune.tasks.text_sources import TextSources, sources_of

log = logging.getLogger(__name__)
BOS_WINDOWS, BOS_LENGTH = 8, 128  # what `where_bos_stands` looks at; the length counts the BOS token
MARGIN = 0.1  # nats per token, a tenth of the perplexity: SmolLM2 gains 0.00 to 0.02 (noise: 0.02), Gemma 3 gains 2


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
    """UsageError for sequences that are longer than the model's positions."""
    lengths = {"task.calibration.length": config.calibration.length}
    check_positions(model, lengths | ({"task.length": config.length + 1} if isinstance(config, Generated) else {}))


def build(config: Text, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> TextTask:
    """Read, split and tokenise the corpora; UsageError when they are too small for what is asked.

    `model` is asked where `task.bos=auto` leaves open how its sequences and windows begin, and writes the text of
    `task=generated`, if any is wanted.
    """
    written = None
    if isinstance(config, Generated) and config.calibration.count:
        assert model is not None, "text that the dense model writes takes the dense model"
        written = written_by(model, tokenizer, config)
    sources = sources_of(config, written)
    tests = [test_documents(corpus, tokenizer) for corpus in sources.tests]
    keys = keys_of(chain.from_iterable(tests))
    where, measured = _where_bos(config.bos, sources, tokenizer, model, keys)
    head = (sources.tests or sources.training)[0]
    text = head.separator.join(document.text for document in tests[0]) if tests else ""
    protocol = {
        "corpus": config.name,
        **_origin(config, sources, tokenizer, written),
        "separator": head.separator,
        "bos": where,
        **({"bos_measured": measured} if measured else {}),
        "tokenizer": hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:12],
        "calibration": {
            **({"split": config.calibration_split} if isinstance(config, LanguageModeling) else {}),
            "count": config.calibration.count,
            "length": config.calibration.length,
            "seed": config.calibration.drawn_by,
        },
        "test_split": _test_split(head) if tests else None,
        "test_text": hash_of(text),
    }
    bos = int(tokenizer.bos_token_id) if where == "window" else None
    ids, read = _calibration(config.calibration, sources, tokenizer, keys, bos)
    test = test_tokens(tokenizer, text, where)
    return TextTask(ids, protocol, test=test, bos=bos, calibrated_on=read, sources=sources)


def _origin(
    config: Text, sources: TextSources, tokenizer: PreTrainedTokenizerBase, written: Path | None
) -> dict[str, Any]:
    """Where the text came from, for the record."""
    if isinstance(config, LanguageModeling):
        return _of_corpus(config, tokenizer)
    test = {"test_of": sources.tests[0].name if sources.tests else None}
    if isinstance(config, Generated):
        how = {name: getattr(config, name) for name in ("prompts", *ASKED)}
        return {**how, "written": written.stem if written else None, **test}
    counts = sources.shares(config.calibration.count)
    parts = [
        {"corpus": corpus.name, "sequences": count, "split": corpus.calibration_split, **_of_corpus(corpus, tokenizer)}
        for corpus, count in zip(sources.training, counts, strict=True)
    ]
    return {"parts": parts, **test}


def _of_corpus(config: LanguageModeling, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "source": config.source or config.files,
        "subset": config.subset,
        **({"test_source": config.test_source, "test_subset": config.test_subset} if config.test_source else {}),
        **({"template": template_of(tokenizer, config.template).digest} if isinstance(config, Chat) else {}),
    }


def _test_split(config: LanguageModeling) -> str:
    return config.test_split if config.source or config.test_source else "held-out documents"


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

    They are of the same text whatever the run's seed; of the test's corpus where nothing is trained on.
    """
    if tokenizer.bos_token_id is None:
        if choice == "window":
            raise UsageError("task.bos: 'window', but this tokenizer has no BOS token, use text or none")
        return ("none" if choice == "auto" else choice), {}
    if model is None:
        assert choice != "auto", "only a model can tell where BOS has to stand"
        return choice, {}
    corpus = (sources.training or sources.tests)[0]
    held_out = held_out if sources.training else set()
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
    parts, read = [torch.empty(0, length, dtype=torch.long)], frozenset[str]()
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
