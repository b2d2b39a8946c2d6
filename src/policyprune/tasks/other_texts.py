"""Test texts beside a task's own, for perplexity: `evaluation.texts`."""

from collections.abc import Set
from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from policyprune.config.schema import Evaluation, LanguageModeling
from policyprune.config.texts import corpus_of
from policyprune.errors import UsageError
from policyprune.tasks.corpora import Document, test_documents
from policyprune.tasks.language_modeling import TextTask, hash_of, test_tokens, test_windows


@dataclass(frozen=True, kw_only=True)
class OtherText:
    """Windows (N, length) of a text by their length, its hash, its documents (`Document.letters`), and how many of them
    calibration has read."""

    name: str
    text_hash: str
    windows: dict[int, Tensor]
    letters: tuple[str, ...]
    shared: int

    def first(self) -> "OtherText":
        """The same with the first window of each length."""
        return replace(self, windows={length: ids[:1] for length, ids in self.windows.items()})

    def check(self) -> list[str]:
        """A line where calibration has read some of it."""
        return self._warned(self.shared, "calibration", "pruned")

    def trained_on(self, read: Set[str]) -> list[str]:
        """A line where a recovery has read some of it: `read`, as `letters`."""
        return self._warned(sum(each in read for each in self.letters), "recovery", "recovered")

    def _warned(self, shared: int, stage: str, model: str) -> list[str]:
        if not shared:
            return []
        return [
            f"evaluation.texts: {shared} of the {len(self.letters)} documents of {self.name!r} were read for {stage} "
            f"too, its perplexity says less of the {model} model"
        ]


def read_texts(options: Evaluation, task: TextTask, tokenizer: PreTrainedTokenizerBase) -> list[OtherText]:
    """The texts, cut as the task's own is and with BOS where it stands there; UsageError for what cannot be read."""
    texts = []
    for word in options.texts:
        corpus = corpus_of(word)
        documents = _documents(word, corpus, tokenizer)
        text = corpus.separator.join(document.text for document in documents)
        letters = tuple(document.letters() for document in documents if document.text.strip())
        tokens = test_tokens(tokenizer, text, task.protocol["bos"])
        texts.append(
            OtherText(
                name=corpus.name,
                text_hash=hash_of(text),
                windows={
                    length: test_windows(tokens, length, task.bos, options.max_tokens, repr(word))
                    for length in options.lengths
                },
                letters=letters,
                shared=sum(each in task.calibrated_on for each in letters),
            )
        )
    return texts


def _documents(word: str, corpus: LanguageModeling, tokenizer: PreTrainedTokenizerBase) -> list[Document]:
    """The test documents of a corpus; a UsageError names the word that stands for it, and the key of its option."""
    try:
        return test_documents(corpus, tokenizer)
    except UsageError as error:
        key, _, reason = str(error).removeprefix("task.").partition(": ")
        raise UsageError(f"evaluation.texts: {word!r}, {key}: {reason}") from error
