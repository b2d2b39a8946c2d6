"""What goes into a run: the dense model, what may go and remain of it, the task, and what is measured."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from policyprune.config.fields import SEEDS, Described, choice, named, number, setting

UNITS = ("attention", "query_head", "ffn", "attention_block", "ffn_block", "layer", "hidden")
DTYPES = ("auto", "float32", "bfloat16", "float16")
QUESTIONS = ("piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "boolq")


@dataclass(kw_only=True)
class Model:
    """Where the dense model comes from and how it is held."""

    name: str = setting(help="what tables and folders call it")
    source: str = setting(
        help="hub id, local directory, pkg://package/path, or a .gguf file in any of these, also in parts with spaces "
        "between"
    )
    fine_tuned: dict[str, str] | None = setting({}, help="sources by task, of which one takes the place of `source`")
    revision: str | None = setting(None, help="branch, tag or commit on the hub; null: the main branch")
    device: str = setting("auto", help="auto, cpu, cuda, cuda:1, ...; auto: a GPU where there is one")
    dtype: str = choice("auto", choices=DTYPES, help="of the weights; auto: bfloat16 or float16 on a GPU, else float32")
    search_dtype: str = choice(
        "auto",
        choices=DTYPES,
        help="of the search's forward passes; auto: `dtype`, but bfloat16 for float32 on a processor made for it",
    )
    attn_implementation: str = choice(
        "auto",
        choices=("auto", "sdpa", "eager", "flash_attention_2", "flex_attention"),
        help="attention of transformers; auto: its own choice",
    )
    device_map: str | None = choice(
        None,
        choices=("auto", "balanced", "balanced_low_0", "sequential"),
        help="how accelerate spreads the model over devices; null: all of it on `device`",
    )
    trust_remote_code: bool = setting(False, help="run modelling code that comes with the checkpoint")


@dataclass(kw_only=True)
class Granularity(Described):
    """Which units can be removed."""

    name: str = setting(MISSING, help="what tables and folders call it; in Python the kinds where it is not said")
    units: list[str] = choice(choices=UNITS, help="kinds of units")
    align: int | None = number(None, at_least=1, help="final widths are multiples of this; null: of anything")
    spared: list[float] = number(
        [0.0, 0.0], at_least=0, below=1, help="shares of the layers, the first and the last ones, that stay whole"
    )

    @property
    def kinds(self) -> set[str]:
        """The kinds of units; query heads are of attention, too."""
        return {"attention" if kind == "query_head" else kind for kind in self.units}

    def __post_init__(self) -> None:
        """The kinds are the name of one that was made without, in Python."""
        if self.name == MISSING and isinstance(self.units, list | tuple):
            self.name = "+".join(map(str, self.units))


@dataclass(kw_only=True)
class Budget(Described):
    """What may remain of the dense model."""

    name: str = choice("rate", choices=("rate", "params", "flops"), help="what is counted")
    keep: float = number(0.8, above=0, at_most=1, help="share of the dense model's cost that may remain")
    scope: str = choice(
        "global",
        choices=("global", "per_layer", "uniform"),
        help="one budget for all layers, the same share of each, or the same widths in each",
    )
    sequence_length: int = number(128, at_least=1, help="tokens, for the multiply-accumulates of attention")


@dataclass(kw_only=True)
class LatencyBudget(Budget):
    """The time of the transformer blocks on this machine, from a table that is measured and kept."""

    name: str = named("latency")
    batch_size: int = number(8, at_least=1, help="sequences of the timed forward passes")
    repeats: int = number(
        15, at_least=1, help="timed rounds over all widths of the table, and over dense and pruned blocks"
    )


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


@dataclass(kw_only=True)
class Latency:
    """Timed forward passes of the transformer."""

    batch_sizes: list[int] = number([8], at_least=1, help="sequences of a forward pass, each size is timed")
    length: int = number(128, at_least=1, help="tokens of each sequence")
    repeats: int = number(5, at_least=0, help="timed forward passes; 0: not measured")


@dataclass(kw_only=True)
class ZeroShot:
    """Accuracy on multiple-choice questions, by lm-evaluation-harness."""

    tasks: list[str] = choice([], choices=QUESTIONS, help="sets of questions; empty: none")
    source: str = choice(
        "auto",
        choices=("auto", "hub", "embedded"),
        help="where the questions come from; auto: the hub where it can be reached",
    )
    limit: int | None = number(None, at_least=1, help="the first documents of each task; null: all")
    num_fewshot: int = number(0, at_least=0, help="solved examples before each question")
    batch_size: int = number(16, at_least=1, help="answers per forward pass")


@dataclass(kw_only=True)
class Evaluation:
    """What is measured of the dense, the one-shot and the pruned model."""

    name: str = setting(help="which option this is")
    lengths: list[int] = number([128], at_least=2, help="perplexity windows in tokens; empty: none")
    texts: list[str] = setting(
        [],
        help="other test texts for perplexity: options of `task`, files, or hub ids of data sets with a split `test`",
    )
    max_tokens: int | None = number(65536, at_least=2, help="of each test text; null: the whole test split")
    batch_tokens: int = number(2048, at_least=1, help="tokens per forward pass")
    one_shot: list[str] = choice(
        ["global", "per_layer"],
        choices=("global", "per_layer"),
        help="masks by the importance scores alone to compare with",
    )
    fresh_process: bool = setting(True, help="load the checkpoint without policyprune and measure it there")
    latency: Latency = field(default_factory=Latency)
    zero_shot: ZeroShot = field(default_factory=ZeroShot)
