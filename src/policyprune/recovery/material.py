"""What a recovery is trained on and judged by: training data, of which some documents or examples are held out.

Neither is of the test data: documents and examples of the test are left out, as they are for calibration.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.fields import SEEDS
from policyprune.config.schema import Labelled, LanguageModeling, Task, Trained
from policyprune.config.texts import training_corpus
from policyprune.errors import UsageError
from policyprune.recovery.losses import Batch
from policyprune.tasks import BuiltTask, build
from policyprune.tasks.classification import ClassificationTask
from policyprune.tasks.corpora import Document, calibration_documents
from policyprune.tasks.language_modeling import TextTask, cut, pack, test_keys
from policyprune.tasks.question_answering import QuestionAnsweringTask

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
    if isinstance(config, LanguageModeling):
        assert isinstance(task, TextTask)
        if options.task is None:
            return of_text(options, config, tokenizer, task.bos)
        other = training_corpus(options.task, "recovery.task")
        other = replace(other, calibration=replace(other.calibration, seed=config.calibration.seed))
        return of_text(options, other, tokenizer, task.bos, test_keys(config, tokenizer))
    assert isinstance(config, Labelled)
    every = build(replace(config, calibration=replace(config.calibration, count=None)), tokenizer, model)
    assert isinstance(every, ClassificationTask | QuestionAnsweringTask)
    return of_examples(options, every, model)


def of_text(
    options: Trained,
    config: LanguageModeling,
    tokenizer: PreTrainedTokenizerBase,
    bos: int | None,
    without: Collection[str] = (),
) -> Material:
    """Sequences of packed documents, of which the first ones are held out as documents.

    Test documents are left out, and those whose key is in `without`.
    """
    tested, seed = (
        test_keys(config, tokenizer) | set(without),
        config.calibration.drawn_by + 1,
    )  # not calibration's order
    fresh, wanted = options.length - (bos is not None), options.held_out or HELD_OUT[False]

    def documents(epoch: int, without: set[str]) -> Iterator[Document]:
        seeded = replace(config.calibration, seed=(seed + epoch) % SEEDS)
        return calibration_documents(replace(config, calibration=seeded), without, tokenizer)

    judges, tokens = set(tested), list[int]()
    for document in documents(0, tested):
        if len(tokens) >= wanted * fresh:
            break
        judges.add(document.key)
        tokens += pack(tokenizer, [document.text], config.separator)
    held_out = cut(torch.tensor(tokens[: wanted * fresh], dtype=torch.long), options.length, bos)

    def epoch(number: int) -> Iterator[Tensor]:
        texts = (document.text for document in documents(number, judges))
        generator = torch.Generator().manual_seed(seed + number)
        while len(packed := pack(tokenizer, texts, config.separator, CHUNK * fresh)) >= fresh:
            rows = cut(torch.tensor(packed), options.length, bos)
            yield from rows[torch.randperm(len(rows), generator=generator)]

    training = Endless(epoch)
    if len(held_out) < wanted or training.empty:
        raise UsageError(
            f"recovery.held_out: {wanted} sequences of {options.length} tokens leave nothing of the training text to "
            "train on, use less"
        )
    facts = {"task": config.name, "length": options.length, "held_out_documents": len(judges) - len(tested)}
    return Material(training=training, held_out=list(held_out), collate=_tokens, labelled=False, facts=facts)


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
