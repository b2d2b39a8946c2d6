"""The tasks: where their data come from, how these are cut and divided, and what is measured."""

from dataclasses import dataclass, field

from policyprune.config.fields import SEEDS, choice, number, setting


@dataclass
class Calibration:
    """The sequences that the search and the importance scores may look at."""

    count: int = number(4096, at_least=1, help="sequences")
    length: int = number(64, at_least=2, help="tokens of each")
    seed: int | None = number(None, at_least=0, at_most=SEEDS, help="which ones are drawn; null: the run's seed")

    @property
    def drawn_by(self) -> int:
        """The seed; 0 where there is no run that has one."""
        return self.seed or 0


@dataclass(kw_only=True)
class Task:
    """Base of the tasks."""

    name: str = setting(help="what tables and folders call it")


@dataclass(kw_only=True)
class Text(Task):
    """Base of the tasks of next-token prediction: calibration sequences are cut from text."""

    bos: str = choice(
        "auto",
        choices=("auto", "none", "text", "window"),
        help="begin-of-sequence token: nowhere, first in the test text, or in each sequence and window; "
        "auto: what gives the dense model the lower loss",
    )
    calibration: Calibration = field(default_factory=Calibration)


@dataclass(kw_only=True)
class LanguageModeling(Text):
    """Next-token prediction on a corpus: calibration sequences, and a perplexity protocol."""

    source: str | None = setting(None, help="hub id of a data set; null where `files` are read")
    subset: str | None = setting(None, help="of the data set on the hub")
    data_files: dict[str, str] = setting({}, help="split -> file inside the data set on the hub; empty: all")
    calibration_split: str = setting("train", help="split that calibration sequences are drawn from")
    test_split: str = setting("test", help="split that perplexity is measured on")
    test_source: str | None = setting(None, help="hub id, where the test split is another data set's")
    test_subset: str | None = setting(None, help="of that data set")
    files: list[str] | None = setting(
        None, help=".txt, .json, .jsonl, .csv, .tsv, .parquet (optionally .gz), paths or pkg://package/path"
    )
    test_files: list[str] | None = setting(None, help="the same for the test; null: a hashed share of `files`")
    test_fraction: float = number(0.1, above=0, below=1, help="that share")
    text_column: str = setting("text", help="column that holds the text")
    key_column: str | None = setting(None, help="what the held-out share is hashed by; null: the text itself")
    separator: str = setting("\n\n", help="joins the test documents")
    test_documents: int | None = number(None, at_least=1, help="the first documents of the test split; null: all")


@dataclass(kw_only=True)
class Chat(LanguageModeling):
    """Next-token prediction on conversations, as the chat template of the tokenizer sets them."""

    name: str = setting("chat", help="what tables and folders call it")
    text_column: str = setting("messages", help="column that holds the messages, objects with a role and a content")
    key_column: str | None = setting(None, help="what the held-out share is hashed by; null: the messages themselves")
    separator: str = setting("", help="stands between conversations, beside what the template has")
    template: str | None = setting(None, help="file with another chat template (Jinja); null: the tokenizer's own")


@dataclass(kw_only=True)
class Mixture(Text):
    """Next-token prediction on several texts, each with its share of the sequences; the first one has the test."""

    name: str = setting("mixture", help="what tables and folders call it")
    parts: list[str] = setting([], help="the texts: options of `task`, files or hub ids, these also behind chat:")
    weights: list[float] = number(
        [], above=0, help="shares of the texts in the sequences, whatever their sum; empty: the same of each"
    )


@dataclass(kw_only=True)
class Generated(Text):
    """Next-token prediction on text that the dense model writes itself; the test is that of another text."""

    name: str = setting("generated", help="what tables and folders call it")
    test_task: str | None = setting(None, help="whose test is measured: an option of `task`, a file or a hub id")
    prompts: str | None = setting(None, help="file with texts that the model goes on with; null: it begins with BOS")
    chat: bool = setting(False, help="prompts are what a user says, and the model answers, by its chat template")
    temperature: float = number(1.0, above=0, help="that the logits are divided by before a token is drawn")
    top_p: float = number(
        0.95, above=0, at_most=1, help="tokens are drawn from the likeliest ones that have this probability together"
    )
    length: int = number(256, at_least=1, help="tokens of a text at most, its prompt not counted")
    tokens: int = number(262_144, at_least=1, help="to write in all, prompts counted")
    batch_size: int = number(32, at_least=1, help="texts that are written at once")
    seed: int = number(0, at_least=0, at_most=SEEDS, help="of what is written; calibration.seed draws from that")


@dataclass
class Examples:
    """The labelled examples that the search and the importance scores may look at."""

    count: int | None = number(2048, at_least=1, help="examples; null: all")
    seed: int | None = number(None, at_least=0, at_most=SEEDS, help="which ones are drawn; null: the run's seed")

    @property
    def drawn_by(self) -> int:
        """The seed; 0 where there is no run that has one."""
        return self.seed or 0


@dataclass(kw_only=True)
class Labelled(Task):
    """Base of the tasks with labelled examples; each split comes from the hub or from files."""

    source: str | None = setting(None, help="hub id; null where `data_files` are read")
    subset: str | None = setting(None, help="of the data set on the hub")
    data_files: dict[str, str] = setting({}, help="split -> file or pkg://package/path, used instead of the hub")
    origin: str = choice(
        "auto",
        choices=("auto", "hub", "embedded"),
        help="where the other splits come from; auto: the hub where it can be reached, for all splits alike",
    )
    offline_files: dict[str, str] = setting({}, help="split -> file or pkg://package/path, of origin=embedded")
    rename: dict[str, str] = setting({}, help="column -> the name it gets, where a split has it")
    keep_rows: dict[str, str] = setting({}, help="column -> value of the rows that count, where a split has it")
    calibration_split: str = setting("train", help="split that calibration examples are drawn from")
    test_splits: list[str] = setting(["validation"], help="splits that are measured")
    max_length: int = number(128, at_least=8, help="tokens at most")
    calibration: Examples = field(default_factory=Examples)


@dataclass(kw_only=True)
class Classification(Labelled):
    """One or two sentences and a label (GLUE and what looks like it)."""

    text_columns: list[str] = setting(help="one or two columns that hold the sentences")
    label_column: str = setting("label", help="column that holds the label")
    classes: int = number(2, at_least=1, help="number of classes; 1: regression")
    label_names: list[str] = setting([], help="in the order of the numbers in the data; empty: the data's own, if any")
    metrics: list[str] = choice(
        ["accuracy"], choices=("accuracy", "f1", "matthews", "pearson", "spearman"), help="what is measured"
    )


@dataclass(kw_only=True)
class QuestionAnswering(Labelled):
    """Extractive question answering (SQuAD and what looks like it)."""

    max_length: int = number(384, at_least=8, help="tokens of a window at most")
    stride: int = number(128, at_least=1, help="tokens that neighbouring windows of a long context share")
    max_answer_length: int = number(30, at_least=1, help="tokens of an answer at most")
    no_answer: bool = setting(False, help="questions may have none (SQuAD 2.0)")
    no_answer_threshold: float = setting(
        0.0, help="added to the answer's score before it is compared with that of no answer"
    )
    max_questions: int | None = number(None, at_least=1, help="the first of the test split; null: all")
