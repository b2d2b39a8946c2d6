"""SQuAD 2.0 made from SQuAD 1.1: which questions move and where to, and pruning on what comes out."""

import gzip
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from encoders import articles, save_encoder
from harness import validated
from policyprune.commands import run as pipeline
from policyprune.tasks.tables import letters

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "unanswerable.py"
METHODS = {
    "gpruner": ["optimizer.iterations=2", "optimizer.episodes=3", "optimizer.chunk=8", "optimizer.examples=32"],
    "ours_forward": [],
}
Make = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`made(source, name, *options)` runs the script and returns the file that it wrote."""

    def make(source: dict[str, Any], name: str, *options: str) -> Path:
        (tmp_path / "source.json").write_text(json.dumps(source))
        arguments = [str(SCRIPT), str(tmp_path / "source.json"), str(tmp_path / name), *options]
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return tmp_path / name

    return make


def asked(content: dict[str, Any]) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Title, context and question by the question's id."""
    return {
        question["id"]: (article["title"], paragraph["context"], question)
        for article in content["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }


def two_articles() -> dict[str, Any]:
    first, second = articles(12, seed=1), articles(9, seed=2)
    second["data"][0]["title"] = "Nights"
    lonely = articles(1, seed=3)["data"][0] | {"title": "Alone"}
    return {"version": "1.1", "data": [*first["data"], *second["data"], lonely]}


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_moved_questions_have_no_answer_where_they_go_and_the_others_stay(made: Make, share: float) -> None:
    source = two_articles()
    before, after = asked(source), asked(json.loads(made(source, "v2.json", f"--share={share}").read_text()))
    assert sorted(before) == sorted(after)
    moved = [name for name, (_, _, question) in after.items() if question["is_impossible"]]
    assert len(moved) == round(share * len(before))
    for name, (title, context, question) in after.items():
        home_title, home, old = before[name]
        assert (title, question["question"]) == (home_title, old["question"])
        if name in moved:
            assert context != home
            assert question["answers"] == []
            assert not [gold for gold in old["answers"] if letters(gold["text"]) in letters(context)]
        else:
            assert context == home
            assert question["answers"] == old["answers"]


def test_what_can_go_nowhere_stays(made: Make) -> None:
    after = asked(json.loads(made(two_articles(), "v2.json", "--share=1").read_text()))
    stayed = {name for name, (_, _, question) in after.items() if not question["is_impossible"]}
    assert {name for name, (title, _, _) in after.items() if title == "Alone"} <= stayed
    assert len(stayed) < len(after) / 2


def test_a_seed_makes_the_same_file(made: Make) -> None:
    first = made(two_articles(), "a.json.gz").read_bytes()
    assert first == made(two_articles(), "b.json.gz").read_bytes()
    other = made(two_articles(), "c.json.gz", "--seed=1").read_bytes()
    assert gzip.decompress(first) != gzip.decompress(other)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_is_pruned_on_it(made: Make, tmp_path: Path, tiny_tokenizer: Any, method: str) -> None:
    files = {split: made(articles(16, seed), f"{split}.json") for seed, split in enumerate(("train", "validation"))}
    overrides = [
        f"model.source={save_encoder(tmp_path / 'tiny-bert', tiny_tokenizer, 'QuestionAnswering')}",
        "model.name=tiny",
        "task=squad_v2",
        *(f"++task.data_files.{split}={file}" for split, file in files.items()),
        *("task.max_length=48", "task.stride=12", "task.calibration.count=null"),
        *(f"method={method}", "budget=flops", "budget.keep=0.7", "budget.sequence_length=32", *METHODS[method]),
        *("evaluation.latency.repeats=0", "evaluation.one_shot=[]", "evaluation.fresh_process=false"),
    ]
    record = pipeline.run(validated(*overrides), tmp_path / "run")
    rows = {(row.subject, row.metric): row for row in record.results}
    assert rows["tuned", "block_macs"].value <= 0.7 * rows["dense", "block_macs"].value  # type: ignore[operator]
    for subject in ("dense", "pruned", "tuned"):
        for metric in ("exact_match", "f1"):
            row = rows[subject, metric]
            assert row.value is not None
            assert 0 <= row.value <= 1
            assert row.protocol == {"split": "validation", "questions": 32, "chance": 0.5}
