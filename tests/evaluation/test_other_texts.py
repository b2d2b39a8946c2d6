"""Perplexity on texts beside the task's own: windows, BOS, documents that calibration has read, and all outputs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import SMALL_EVALUATION, paragraphs, small_run, validated, write_corpus
from policyprune.commands import run as pipeline
from policyprune.config.schema import Evaluation, LanguageModeling
from policyprune.errors import UsageError
from policyprune.report.files import csv as as_csv
from policyprune.runs.record import Record
from policyprune.runs.summary import summary
from policyprune.tasks.language_modeling import TextTask, build
from policyprune.tasks.other_texts import read_texts
from reports import cell_of, report_on, table_of

CALIBRATED, HELD_OUT = paragraphs(40), paragraphs(10, seed=2)
NEWS = paragraphs(30, seed=1)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.txt", CALIBRATED)


@pytest.fixture
def news(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "news.jsonl", NEWS)


def task_of(corpus: Path, tokenizer: Any, bos: str = "none") -> TextTask:
    """All of the corpus is read for calibration."""
    held_out = write_corpus(corpus.with_name("held-out.txt"), HELD_OUT)
    config = LanguageModeling(name="text", files=[str(corpus)], test_files=[str(held_out)], bos=bos)
    config.calibration.count, config.calibration.length = 8, 16
    return build(config, tokenizer)


def asked(*texts: Path, lengths: tuple[int, ...] = (16, 24), max_tokens: int | None = None) -> Evaluation:
    return Evaluation(name="", lengths=list(lengths), texts=list(map(str, texts)), max_tokens=max_tokens)


@pytest.mark.parametrize("bos", ["none", "text", "window"])
def test_windows_are_the_text_as_the_task_cuts_its_own(corpus: Path, news: Path, tiny_tokenizer: Any, bos: str) -> None:
    (text,) = read_texts(asked(news), task_of(corpus, tiny_tokenizer, bos), tiny_tokenizer)
    ids = tiny_tokenizer("\n\n".join(NEWS), add_special_tokens=bos == "text", verbose=False)["input_ids"]
    for length, windows in text.windows.items():
        fresh = length - 1 if bos == "window" else length
        assert windows.shape == (len(ids) // fresh, length)
        assert windows[:, length - fresh :].flatten().tolist() == ids[: len(windows) * fresh]
        assert bos != "window" or set(windows[:, 0].tolist()) == {tiny_tokenizer.bos_token_id}
    assert (text.name, len(text.letters), text.shared, text.check()) == ("news", 30, 0, [])


def test_tokens_are_bounded_and_a_short_text_is_named(corpus: Path, news: Path, tiny_tokenizer: Any) -> None:
    task = task_of(corpus, tiny_tokenizer)
    (text,) = read_texts(asked(news, lengths=(16,), max_tokens=50), task, tiny_tokenizer)
    assert text.windows[16].shape == (3, 16)
    short = write_corpus(news.with_name("short.txt"), ["A word."])
    with pytest.raises(UsageError, match=r"evaluation\.lengths: 24 is more than the \d+ tokens of '.*short\.txt'"):
        read_texts(asked(short, lengths=(24,)), task, tiny_tokenizer)


def test_documents_that_calibration_has_read_are_counted(corpus: Path, tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Set in capitals and with other signs they are the same."""
    mixed = write_corpus(tmp_path / "mixed.jsonl", [*NEWS, CALIBRATED[3].upper(), CALIBRATED[5].replace(".", " !")])
    (text,) = read_texts(asked(mixed), task_of(corpus, tiny_tokenizer), tiny_tokenizer)
    assert (len(text.letters), text.shared) == (32, 2)
    assert "2 of the 32 documents of 'mixed' were read for calibration" in text.check()[0]


def test_what_cannot_be_read_names_the_word(corpus: Path, tmp_path: Path, tiny_tokenizer: Any) -> None:
    other = write_corpus(tmp_path / "rows.jsonl", NEWS, column="body")
    with pytest.raises(UsageError, match=r"evaluation\.texts: '.*rows\.jsonl', text_column: 'text' is not one of body"):
        read_texts(asked(other), task_of(corpus, tiny_tokenizer), tiny_tokenizer)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> tuple[Record, Path]:
    """A run that measures two other texts, of which one holds calibration documents."""
    folder = tmp_path_factory.mktemp("ran")
    corpus = write_corpus(folder / "corpus.txt", CALIBRATED)
    articles = [{"title": text[:9], "paragraphs": [{"context": text, "qas": []}]} for text in NEWS]
    (folder / "news.json").write_text(json.dumps({"data": articles}))
    again = write_corpus(folder / "again.txt", CALIBRATED)
    texts = [f"evaluation.texts=[{folder / 'news.json'},{again}]", "evaluation.lengths=[16,32]"]
    quick = ["method=flap", "task.bos=none", "importance.sequences=16", "evaluation.latency.repeats=0"]
    arguments = small_run(tiny_checkpoint, corpus, *SMALL_EVALUATION, *texts, *quick)
    return pipeline.run(validated(*arguments), folder / "run"), folder


def test_every_model_is_measured_on_every_text(ran: tuple[Record, Path], tiny_checkpoint: Path) -> None:
    record, _ = ran
    rows = [
        (row.subject, row.protocol.get("text"), row.protocol["length"])
        for row in record.results
        if "length" in row.protocol
    ]
    for subject in ("dense", "one_shot", "pruned", "tuned"):
        expected = [(subject, text, length) for text in (None, "news", "again") for length in (16, 32)]
        assert [row for row in dict.fromkeys(rows) if row[0] == subject] == expected, subject
    assert {text for subject, text, _ in rows if subject == "reloaded"} == {None}
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).requires_grad_(False)
    ids = torch.tensor(tokenizer("\n\n".join(NEWS), add_special_tokens=False)["input_ids"])[:512].view(-1, 32)
    loss = cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    (dense,) = [
        r
        for r in record.results
        if (r.subject, r.protocol.get("text"), r.protocol.get("length")) == ("dense", "news", 32)
    ]
    assert dense.value == pytest.approx(math.exp(loss), rel=1e-4)


def test_calibration_documents_among_them_are_a_warning(ran: tuple[Record, Path]) -> None:
    record, _ = ran
    lines = [line for line in record.warnings if "were read for calibration" in line]
    assert len(lines) == 1
    assert "documents of 'again'" in lines[0]


def test_they_stand_beside_the_tasks_own_text_in_all_outputs(ran: tuple[Record, Path]) -> None:
    record, folder = ran
    assert "perplexity on news, 32 tokens" in summary(record)
    report = report_on(folder)
    table = table_of(report, "perplexity")
    for column in ("32 tokens ↓, keep 0.8", "news, 32 tokens ↓, keep 0.8", "again, 16 tokens ↓, keep 0.8"):
        assert cell_of(table, column, "flap", "bias_compensation").value
    assert "text=news;length=32" in as_csv(report)
