"""What the words of `evaluation.texts` stand for, and which are refused before anything is loaded."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness import paragraphs, validated, write_corpus
from policyprune.config.schema import Calibration, LanguageModeling
from policyprune.config.texts import corpus_of
from policyprune.errors import UsageError

Refusal = Callable[..., str]


@pytest.mark.parametrize("name", ["wikitext2", "c4_wikitext2", "wikipedia"])
def test_an_option_is_the_corpus_that_the_task_reads(name: str) -> None:
    stated = validated(f"task={name}").task
    assert isinstance(stated, LanguageModeling)
    assert replace(stated, calibration=Calibration()) == corpus_of(name)


@pytest.mark.parametrize(
    ("word", "name"),
    [("a/news.txt", "news"), ("news.2019.jsonl.gz", "news.2019"), ("../train-nyt.json.gz", "train-nyt")],
)
def test_a_file_is_a_test_text_as_a_whole(word: str, name: str) -> None:
    corpus = corpus_of(word)
    assert (corpus.name, corpus.test_files, corpus.source) == (name, [word], None)


def test_a_hub_id_is_its_test_split() -> None:
    corpus = corpus_of("owner/some.data")
    assert (corpus.name, corpus.source, corpus.test_split, corpus.files) == (
        "some.data",
        "owner/some.data",
        "test",
        None,
    )


@pytest.mark.parametrize("word", ["news", "text", "glue/sst2", "glue/sst2/x", "squad_v1", "", "a b/c", "a/news.pdf/"])
def test_what_is_none_of_these_is_refused_with_the_choices(word: str) -> None:
    with pytest.raises(
        UsageError, match=r"^evaluation\.texts: .* none of alpaca, c4, .*wikipedia, wikitext2, no text file"
    ):
        corpus_of(word)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["evaluation.texts=[news]"], "'news' is none of"),
        (["evaluation.texts=news.txt"], "is not a list"),
        (["evaluation.texts=[/nowhere/news.txt]"], "'/nowhere/news.txt' does not exist"),
        (["evaluation.texts=[nowhere/news.jsonl]"], "'nowhere/news.jsonl' does not exist"),
        (["evaluation.texts=[wikipedia]"], "'wikipedia' is the task's own text"),
        (["evaluation.texts=[a/x.txt,b/x.jsonl]"], "two are called 'x'"),
        (["evaluation.texts=[wikitext2]", "evaluation.lengths=[]"], "evaluation.lengths"),
        (["evaluation.texts=[wikitext2]", "evaluation=none"], "evaluation.lengths"),
        (["evaluation.texts=[wikitext2]", "task=squad_v1", "model=minilm_l6"], "task=squad_v1"),
        (["finetune", "evaluation.texts=[wikitext2]", "task=glue/sst2", "model=minilm_l6"], "task=glue/sst2"),
    ],
)
def test_wrong_texts_are_one_line(refusal: Refusal, overrides: list[str], words: str) -> None:
    line = refusal(*overrides)
    assert line.startswith("evaluation.texts: ")
    assert words in line


def test_a_missing_text_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.txt", paragraphs(3))
    code = (
        "import sys\nfrom policyprune import cli\n"
        f"sys.argv = ['policyprune', 'task=text', 'task.files=[{corpus}]', 'evaluation.texts=[/nowhere/a.txt]']\n"
        "try:\n    cli.main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "evaluation.texts: '/nowhere/a.txt' does not exist" in done.stderr
