"""What a recovery is trained on and judged by: training data, of which some documents or examples are held out.

Neither is of the test data: documents and examples of the test are left out, as they are for calibration.
"""

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.fields import SEEDS
from policyprune.config.schema import Labelled, LanguageModeling, Task, Text, Trained
from policyprune.config.texts import training_corpus
from policyprune.errors import UsageError
from policyprune.recovery.losses import Batch
from policyprune.tasks import BuiltTask, build
from policyprune.tasks.classification import ClassificationTask
from policyprune.tasks.corpora import Document, calibration_documents
from policyprune.tasks.language_modeling import TextTask, test_keys
from policyprune.tasks.packing import cut, pack
from policyprune.tasks.question_answering import QuestionAnsweringTask
from policyprune.tasks.text_sources import TextSources

CHUNK = 512  # sequences that are cut and shuffled at a time, batches of examples of like length
HELD_OUT = {False: 32, True: 512}  # sequences of text, labelled examples
BATCH = {False: 8, True: 32}


@dataclass(frozen=True, kw_only=True)
class Material:
    """An endless stream of items to train on, those held out, and `collate`, which makes a batch of some of them."""

    training: "Endless"
    held_out: list[Any]
    collate: Callable[[list[Any]], Batch]
    labelled: bool
    facts: dict[str, Any]  # for the record
    read: Set[str] = frozenset()  # documents that were read so far, by their letters


class Endless(IterableDataset[Any]):
    """The items of epoch 0, 1, 2, ...; an epoch of a number is always the same."""

    def __init__(self, epoch: Callable[[int], Iterator[Any]]) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        """From the first item of the first epoch."""
        return chain.from_iterable(self._epoch(number) for number in count())

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return next(self._epoch(0), None) is None


def material_of(
    options: Trained, config: Task, task: BuiltTask, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> Material:
    """The training data of a task; `config.calibration.seed` orders it. UsageError where there is too little."""
    if isinstance(config, Text):
        assert isinstance(task, TextTask)
        assert task.sources is not None
        sources = task.sources
        if options.task is not None:
            other = replace(training_corpus(options.task, "recovery.task"), calibration=config.calibration)
            sources = TextSources(training=(other,), tests=(other, *sources.tests))
        try:
            return of_text(options, sources, tokenizer, task.bos)
        except UsageError as error:  # names the key of the other text's option
            key, _, reason = str(error).partition(": ")
            if options.task is None or not key.startswith("task."):
                raise
            raise UsageError(f"recovery.task: {options.task!r}, {key.removeprefix('task.')}: {reason}") from error
    assert isinstance(config, Labelled)
    every = build(replace(config, calibration=replace(config.calibration, count=None)), tokenizer, model)
    assert isinstance(every, ClassificationTask | QuestionAnsweringTask)
    return of_examples(options, every, model)


def of_text(options: Trained, sources: TextSources, tokenizer: PreTrainedTokenizerBase, bos: int | None) -> Material:
    """Sequences of packed documents, of which the first ones are held out as documents; test documents are left out.

    Of several corpora each `CHUNK` sequences, and those that are held out, have their shares. An epoch ends with the
    first corpus that does.
    """
    corpora, tested = sources.training, test_keys(sources, tokenizer)
    seed = corpora[0].calibration.drawn_by + 1  # not calibration's order
    fresh, wanted = options.length - (bos is not None), options.held_out or HELD_OUT[False]

    def documents(corpus: LanguageModeling, epoch: int, without: set[str]) -> Iterator[Document]:
        seeded = replace(corpus.calibration, seed=(seed + epoch) % SEEDS)
        return calibration_documents(replace(corpus, calibration=seeded), without, tokenizer)

    judges, held_out, read = set(tested), list[Tensor](), set[str]()
    for corpus, share in zip(corpora, sources.shares(wanted), strict=True):
        tokens = list[int]()
        for document in documents(corpus, 0, tested):
            if len(tokens) >= share * fresh:
                break
            judges.add(document.key)
            read.add(document.letters())
            tokens += pack(tokenizer, [document.text], corpus.separator)
        held_out += cut(torch.tensor(tokens[: share * fresh], dtype=torch.long), options.length, bos)

    def texts_of(corpus: LanguageModeling, number: int) -> Iterator[str]:
        for document in documents(corpus, number, judges):
            if number == 0:  # later epochs have the same ones
                read.add(document.letters())
            yield document.text

    def epoch(number: int) -> Iterator[Tensor]:
        texts = [texts_of(corpus, number) for corpus in corpora]
        generator, most = torch.Generator().manual_seed(seed + number), CHUNK
        while most == CHUNK:
            rows = []
            for corpus, own, share in zip(corpora, texts, sources.shares(CHUNK), strict=True):
                packed = pack(tokenizer, own, corpus.separator, share * fresh)
                rows.append(cut(torch.tensor(packed, dtype=torch.long), options.length, bos))
            most, shares = _most([len(part) for part in rows], sources)
            chunk = torch.cat([part[:share] for part, share in zip(rows, shares, strict=True)])
            yield from chunk[torch.randperm(most, generator=generator)]

    training = Endless(epoch)
    if len(held_out) < wanted or training.empty:
        raise UsageError(
            f"recovery.held_out: {wanted} sequences of {options.length} tokens leave nothing of the training text to "
            "train on, use less"
        )
    facts = {"task": sources.name, "length": options.length, "held_out_documents": len(judges) - len(tested)}
    return Material(training=training, held_out=held_out, collate=_tokens, labelled=False, facts=facts, read=read)


def _most(there: list[int], sources: TextSources) -> tuple[int, list[int]]:
    """The most sequences, `CHUNK` at most, of which each corpus has its share, and these shares."""
    for total in range(CHUNK, -1, -1):
        shares = sources.shares(total)
        if all(share <= own for share, own in zip(shares, there, strict=True)):
            return total, shares
    raise AssertionError("none of no sequences is always there")


def _tokens(rows: list[Tensor]) -> Batch:
    ids = torch.stack(rows)
    return {"input_ids": ids, "labels": ids}


def of_examples(options: Trained, task: ClassificationTask | QuestionAnsweringTask, model: PreTrainedModel) -> Material:
    """Labelled examples, some of them held out: an eighth at most, all windows of a question or none."""
    lengths, seed = task.lengths, task.config.calibration.drawn_by
    if isinstance(task, ClassificationTask):
        labels, owners = task.calibration.labels_for(model), torch.arange(len(lengths))
    else:
        labels, owners = task.calibration.spans, task.calibration.question
    wanted = min(options.held_out or HELD_OUT[True], len(lengths) // 8)
    order = owners.unique()[torch.randperm(len(owners.unique()), generator=torch.Generator().manual_seed(seed))]
    places = torch.empty(int(owners.max()) + 1, dtype=torch.long)
    places[order] = torch.arange(len(order))
    drawn = places[owners].argsort(stable=True)  # all rows, question after question
    first = int((places[owners[drawn]] <= places[owners[drawn[wanted - 1]]]).sum()) if wanted else 0
    held_out, trained = drawn[:first], drawn[first:]
    if not first or not len(trained):
        raise UsageError(
            f"task.calibration_split: {len(lengths)} examples are too few to train on some and judge by others"
        )
    together = CHUNK * (options.batch_size or BATCH[True])

    def epoch(number: int) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed + number)
        shuffled = trained[torch.randperm(len(trained), generator=generator)]
        for chunk in shuffled.split(together):
            batches = chunk[lengths[chunk].argsort(stable=True)].split(options.batch_size or BATCH[True])
            for batch in torch.randperm(len(batches), generator=generator).tolist():
                yield from batches[batch].tolist()

    def collate(rows: list[int]) -> Batch:
        index = torch.tensor(rows)
        return {**task.inputs(index), "labels": labels[index]}

    facts = {"task": task.config.name, "examples": len(trained)}
    return Material(training=Endless(epoch), held_out=held_out.tolist(), collate=collate, labelled=True, facts=facts)
