"""Several texts at once: exact shares, one test, and none of the tests in what is learned from."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness import paragraphs, validated, write_corpus
from policyprune.config.combinations import check_evaluation, check_task
from policyprune.config.schema import Calibration, Evaluation, Mixture
from policyprune.config.texts import parts_of, shares
from policyprune.errors import UsageError
from policyprune.recovery.material import CHUNK, of_text
from policyprune.recovery.options import Distill
from policyprune.tasks import build
from policyprune.tasks.corpora import test_documents as documents_of_the_test
from policyprune.tasks.language_modeling import TextTask
from policyprune.tasks.text_sources import sources_of


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=6), st.integers(0, 600))
def test_shares_are_whole_and_the_nearest(weights: list[float], total: int) -> None:
    found = shares(weights, total)
    exact = [Fraction(weight) * total / sum(map(Fraction, weights)) for weight in weights]
    assert sum(found) == total
    assert all(abs(share - wanted) < 1 for share, wanted in zip(found, exact, strict=True))
    rounded_up = [wanted % 1 for share, wanted in zip(found, exact, strict=True) if share > wanted]
    rounded_down = [wanted % 1 for share, wanted in zip(found, exact, strict=True) if share <= wanted]
    assert min(rounded_up, default=1) >= max(rounded_down, default=0)
    assert shares([weight * 4 for weight in weights], total) == found


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Three texts whose documents are told apart by their number's first digit."""
    numbers = [(1, 90, "a.txt"), (2, 60, "b.jsonl"), (3, 60, "c.jsonl")]
    return [str(write_corpus(tmp_path / name, paragraphs(count, seed))) for seed, count, name in numbers]


def mixture(files: list[str], weights: list[float], count: int = 40, seed: int = 0) -> Mixture:
    calibration = Calibration(count=count, length=32, seed=seed)
    return Mixture(name="mixture", parts=files, weights=weights, bos="none", calibration=calibration)


def owners(rows: Iterable[torch.Tensor], tokenizer: Any) -> Counter[str]:
    """Of how many rows a text's first document's name stands in each."""
    names = [re.findall(r"Story (\d)-", tokenizer.decode(row)) for row in rows]
    return Counter(name[0] for name in names if name)


def test_each_text_has_its_share_of_the_sequences(files: list[str], tiny_tokenizer: Any) -> None:
    config = mixture(files, [5, 3, 2])
    task = build(config, tiny_tokenizer)
    assert isinstance(task, TextTask)
    alone = {}
    for part, count in zip(parts_of(config), (20, 12, 8), strict=True):
        part.calibration = Calibration(count=count, length=32, seed=0)
        part.bos = "none"
        alone[part.name] = build(part, tiny_tokenizer).ids  # type: ignore[attr-defined]
    expected = sorted(tuple(row.tolist()) for ids in alone.values() for row in ids)
    assert sorted(tuple(row.tolist()) for row in task.ids) == expected
    assert [part["sequences"] for part in task.protocol["parts"]] == [20, 12, 8]
    assert len(owners(task.ids[:20], tiny_tokenizer)) == 3, "the texts are not shuffled"


def test_the_same_seed_gives_the_same_sequences(files: list[str], tiny_tokenizer: Any) -> None:
    first, again, other = (build(mixture(files, [2, 1, 1], seed=seed), tiny_tokenizer) for seed in (3, 3, 4))
    rows = torch.arange(40)
    assert torch.equal(first.inputs(rows)["input_ids"], again.inputs(rows)["input_ids"])
    assert first.protocol == again.protocol
    assert not torch.equal(first.inputs(rows)["input_ids"], other.inputs(rows)["input_ids"])


def test_the_test_is_that_of_the_first_text(files: list[str], tiny_tokenizer: Any) -> None:
    config = mixture(files, [])
    task = build(config, tiny_tokenizer)
    text = "\n\n".join(document.text for document in documents_of_the_test(parts_of(config)[0], tiny_tokenizer))
    assert task.test.tolist() == tiny_tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[attr-defined]
    assert task.protocol["test_of"] == "a"


def test_a_test_document_of_one_text_is_left_out_of_all(tmp_path: Path, files: list[str], tiny_tokenizer: Any) -> None:
    """The second one has all documents of the first, and a split by other keys."""
    rows = [{"text": text, "title": f"t{number}"} for number, text in enumerate(paragraphs(90, 1))]
    path = tmp_path / "copy.json"
    path.write_text(json.dumps(rows))
    config = mixture([files[0], str(path)], [1, 9])
    config.calibration.count = 60
    task = build(config, tiny_tokenizer)
    tested = documents_of_the_test(parts_of(config)[0], tiny_tokenizer)
    assert isinstance(task, TextTask)
    assert len(tested) > 3
    assert not {document.letters() for document in tested} & task.calibrated_on
    assert len(task.calibrated_on) > 60


@pytest.mark.parametrize("weights", [[1.0, 1.0], [3.0, 1.0]])
def test_a_recovery_trains_on_the_shares(files: list[str], tiny_tokenizer: Any, weights: list[float]) -> None:
    sources = sources_of(mixture(files[:2], weights))
    material = of_text(Distill(length=32, held_out=8), sources, tiny_tokenizer, None)
    again = of_text(Distill(length=32, held_out=8), sources, tiny_tokenizer, None)
    rows = list(material.training._epoch(0))
    assert torch.equal(torch.stack(rows), torch.stack(list(again.training._epoch(0))))
    assert 20 < len(rows) < CHUNK
    found = owners(rows, tiny_tokenizer)
    assert found["1"] / found["2"] == pytest.approx(weights[0], rel=0.35), "as far as the rows tell"
    judges, trained = (
        set(re.findall(r"Story \d-\d+\.", " ".join(map(tiny_tokenizer.decode, some))))
        for some in (material.held_out, rows)
    )
    tested = {
        document.text.partition(" The")[0].partition(".")[0] + "."
        for corpus in sources.tests
        for document in documents_of_the_test(corpus, tiny_tokenizer)
    }
    assert {name[6] for name in judges} == {"1", "2"}
    assert not judges & trained
    assert not tested & (judges | trained)


def test_too_small_a_text_is_named(files: list[str], tiny_tokenizer: Any) -> None:
    with pytest.raises(
        UsageError, match=r"task\.calibration\.count: 450 sequences .* more than 'a' holds, use at most"
    ):
        build(mixture(files[:2], [9, 1], count=500), tiny_tokenizer)


@pytest.mark.parametrize(
    ("parts", "weights", "words"),
    [
        ([], [], r"task\.parts: empty, name the texts"),
        (["c4", "c4"], [], r"task\.parts: 'c4' stands there twice"),
        (["c4", "news"], [], r"task\.parts: 'news' is none of"),
        (["c4", "wikipedia"], [1.0], r"task\.weights: \[1\.0\] are not 2"),
    ],
)
def test_mixtures_that_are_none_are_refused(parts: list[str], weights: list[float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_task(mixture(parts, weights))


def test_a_text_without_a_share_is_refused() -> None:
    with pytest.raises(UsageError, match=r"task\.weights: 'wikipedia' gets none of the 4096 sequences"):
        validated("task=mixture", "task.parts=[c4,wikipedia]", "task.weights=[10000,1]")
    assert validated("task=mixture", "task.parts=[c4,wikipedia]", "task.weights=[1000,1]").task.name == "mixture"


def test_the_first_text_is_measured_anyway() -> None:
    with pytest.raises(UsageError, match=r"evaluation\.texts: 'c4' is the task's own text"):
        check_evaluation(Evaluation(name="", texts=["c4"]), mixture(["c4", "wikipedia"], []))
    check_evaluation(Evaluation(name="", texts=["wikipedia"]), mixture(["c4", "wikipedia"], []))
