"""What would fail after the search fails before it, in one line, and a run that is sound notices nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from harness import SMALL_EVALUATION, paragraphs, small_run, validated, write_corpus
from policyprune.commands import run as pipeline
from policyprune.errors import UsageError
from policyprune.evaluation import quality
from policyprune.models.adapter import adapt
from policyprune.models.examples import EXAMPLES, example
from policyprune.pruning.prunable import PrunableModel
from policyprune.runs import rehearsal


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "stories.txt", paragraphs(150))


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def search(*args: object) -> None:
        raise AssertionError("the search began")

    monkeypatch.setattr(pipeline, "search", search)


def run(checkpoint: Path, corpus: Path, folder: Path, *overrides: str) -> None:
    pipeline.run(validated(*small_run(checkpoint, corpus, *SMALL_EVALUATION, *overrides)), folder)


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize(
    ("function", "overrides", "begins"),
    [
        ("fit", ["tuning=cg2"], "tuning=cg2 would fail"),
        ("latencies", [], "evaluation.latency would fail"),
        ("shrink", [], "pruning would fail"),
        ("formats.write_format", [], "export=hf would fail"),
        ("TextQuality.of", [], "evaluation would fail"),
    ],
)
def test_any_error_is_one_line_that_names_the_part(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_checkpoint: Path,
    corpus: Path,
    function: str,
    overrides: list[str],
    begins: str,
) -> None:
    def fail(*args: object, **named: object) -> None:
        raise RuntimeError("two\nlines")

    owner = quality if function.startswith("TextQuality") else rehearsal
    monkeypatch.setattr(f"{owner.__name__}.{function}", fail)
    with pytest.raises(UsageError) as caught:
        run(tiny_checkpoint, corpus, tmp_path / "run", *overrides)
    assert str(caught.value).startswith(begins)
    assert str(caught.value).endswith("two lines")
    assert not (tmp_path / "run" / "curve.jsonl").exists()


def test_random_numbers_and_files_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_checkpoint: Path, corpus: Path
) -> None:
    seen: list[Any] = []
    original = rehearsal.rehearse

    def watched(*args: Any) -> None:
        folder: Path = args[-1]
        before = torch.random.get_rng_state(), sorted(folder.iterdir())
        original(*args)
        assert torch.equal(torch.random.get_rng_state(), before[0])
        assert sorted(folder.iterdir()) == before[1]
        seen.append(args)

    monkeypatch.setattr(pipeline, "rehearse", watched)
    run(tiny_checkpoint, corpus, tmp_path / "run", "optimizer=one_shot", "tuning=reconstruct")
    assert len(seen) == 1


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_family_is_tried_on_few_layers(name: str) -> None:
    model = example(name)
    small = rehearsal.few_layers(model)
    adapter = adapt(small)
    left = [block for block in adapter.blocks if block.count]
    assert {block.kind for block in left} == {"attention", "ffn"}
    assert len({block.layer for block in left}) == 2 < len(adapt(model).layers)
    units = PrunableModel.of(small)
    assert 0 < int(rehearsal.half(units).sum()) < units.units.n
