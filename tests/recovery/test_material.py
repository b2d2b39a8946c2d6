"""What is trained on: never the test data, and never what it is judged by."""

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders import articles, encoder_tokenizer, make_encoder, reviews, write_lines
from policyprune.config.schema import Classification, Examples, LanguageModeling, QuestionAnswering
from policyprune.config.texts import training_corpus
from policyprune.errors import UsageError
from policyprune.recovery.losses import IMPOSSIBLE, divergence, task_loss
from policyprune.recovery.material import Endless, Material, material_of, of_text
from policyprune.recovery.options import Distill, Finetune
from policyprune.recovery.recover import Surroundings, recover
from policyprune.tasks import build
from policyprune.tasks.corpora import test_documents as documents_of_the_test
from policyprune.tasks.other_texts import OtherText
from policyprune.tasks.text_sources import TextSources, sources_of

NAME = re.compile(r"Story 0-\d+\.")


def names(rows: Iterable[torch.Tensor], tokenizer: Any) -> set[str]:
    """The documents whose beginning stands in a row."""
    return {name for row in rows for name in NAME.findall(tokenizer.decode(row))}


def one_epoch(material: Material) -> list[Any]:
    return list(material.training._epoch(0))


@pytest.mark.parametrize("bos", [None, 0])
def test_text_of_the_test_and_of_the_judges_is_not_trained_on(
    stories: LanguageModeling, tiny_tokenizer: Any, bos: int | None
) -> None:
    material = of_text(Distill(length=32, held_out=24), sources_of(stories), tiny_tokenizer, bos)
    tested = {name for document in documents_of_the_test(stories, None) for name in NAME.findall(document.text)}
    rows = one_epoch(material)
    trained, judging = names(rows, tiny_tokenizer), names(material.held_out, tiny_tokenizer)
    assert len(tested) > 5
    assert len(trained) > 60
    assert len(judging) >= 3
    assert not tested & (trained | judging)
    assert not trained & judging
    assert all(len(row) == 32 and (bos is None or row[0] == bos) for row in [*rows, *material.held_out])
    assert len(material.held_out) == 24


def test_another_text_leaves_out_both_tests(stories: LanguageModeling, tiny_tokenizer: Any, tmp_path: Path) -> None:
    """Here the other text has the first one's documents, by the same key, and a split of its own."""
    other = replace(stories, test_files=stories.files)  # every document is a test document of that
    with pytest.raises(UsageError, match=r"recovery\.held_out: 32 sequences"):
        of_text(Distill(length=16), TextSources(training=(stories,), tests=(other,)), tiny_tokenizer, None)
    with pytest.raises(UsageError, match=r"recovery\.task: 'glue/sst2' is none of"):
        training_corpus("glue/sst2", "recovery.task")
    assert training_corpus("c4", "recovery.task").source == "allenai/c4"


def test_epochs_are_of_different_orders_and_always_the_same(stories: LanguageModeling, tiny_tokenizer: Any) -> None:
    first, again = (of_text(Distill(length=32), sources_of(stories), tiny_tokenizer, None) for _ in range(2))
    length = len(one_epoch(first))
    rows = torch.stack(list(islice(first.training, 2 * length + 3)))
    assert torch.equal(rows, torch.stack(list(islice(again.training, 2 * length + 3))))
    assert not torch.equal(rows[:length], rows[length : 2 * length])
    other = of_text(
        Distill(length=32),
        sources_of(replace(stories, calibration=replace(stories.calibration, seed=5))),
        tiny_tokenizer,
        None,
    )
    assert not torch.equal(rows[:3], torch.stack(list(islice(other.training, 3))))


def test_what_was_read_is_known_by_its_documents(
    stories: LanguageModeling, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """All but the test, however it is set; a text of which some was read is warned of."""
    material = of_text(Distill(length=32, held_out=24), sources_of(stories), tiny_tokenizer, None)
    one_epoch(material)
    every = documents_of_the_test(replace(stories, test_files=stories.files), None)
    tested = documents_of_the_test(stories, None)
    assert material.read == {document.letters() for document in every} - {document.letters() for document in tested}
    text = OtherText(name="all", text_hash="", windows={}, letters=tuple(own.letters() for own in every), shared=0)
    count = f"{len(every) - len(tested)} of the {len(every)} documents of 'all' were read for recovery"
    assert [line.partition(" too,")[0] for line in text.trained_on(material.read)] == [f"evaluation.texts: {count}"]
    assert text.trained_on(frozenset()) == []


def test_what_is_wrong_with_another_text_names_it(
    stories: LanguageModeling, tiny_tokenizer: Any, tiny_llama: Any
) -> None:
    assert stories.files
    config = replace(stories, calibration=replace(stories.calibration, count=4, length=16), bos="none")
    task, (file,) = build(config, tiny_tokenizer), stories.files
    with pytest.raises(UsageError, match=r"^recovery\.task: 'chat:.*', template: this tokenizer has no chat template"):
        material_of(Distill(task=f"chat:{file}"), config, task, tiny_tokenizer, tiny_llama())


def test_too_little_text_is_refused(stories: LanguageModeling, tiny_tokenizer: Any) -> None:
    with pytest.raises(UsageError, match=r"recovery\.held_out: 500 sequences of 128 tokens leave nothing"):
        of_text(Distill(held_out=500), sources_of(stories), tiny_tokenizer, None)


def classification(folder: Path) -> Classification:
    files = {
        split: str(write_lines(folder / f"{split}.jsonl", reviews(n, n)))
        for split, n in (("train", 90), ("validation", 20))
    }
    return Classification(name="own", data_files=files, text_columns=["sentence"], calibration=Examples(8, 0))


def questions(folder: Path) -> QuestionAnswering:
    import json

    files = {}
    for seed, (split, count) in enumerate((("train", 40), ("validation", 8))):
        files[split] = str(folder / f"{split}.json")
        Path(files[split]).write_text(json.dumps(articles(count, seed)))
    return QuestionAnswering(
        name="own", data_files=files, max_length=40, stride=16, calibration=Examples(8, 0), test_splits=["validation"]
    )


def test_all_labelled_examples_are_trained_on_but_those_that_judge(tmp_path: Path, tiny_tokenizer: Any) -> None:
    tokenizer, config = encoder_tokenizer(tiny_tokenizer), classification(tmp_path)
    model = make_encoder(vocab_size=len(tokenizer))
    material = material_of(Finetune(held_out=10, batch_size=8), config, build(config, tokenizer), tokenizer, model)
    rows = one_epoch(material)
    assert (len(rows), len(material.held_out)) == (80, 10)
    assert sorted([*rows, *material.held_out]) == list(range(90))
    batch = material.collate(rows[:8])
    assert batch["labels"].shape == (8,)
    assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]


def test_windows_of_a_question_stand_on_one_side(tmp_path: Path, tiny_tokenizer: Any) -> None:
    tokenizer, config = encoder_tokenizer(tiny_tokenizer), questions(tmp_path)
    every = build(replace(config, calibration=replace(config.calibration, count=None)), tokenizer)
    model = make_encoder("QuestionAnswering", vocab_size=len(tokenizer))
    material = material_of(Finetune(held_out=9), config, build(config, tokenizer), tokenizer, model)
    owners = every.calibration.question  # type: ignore[attr-defined]
    rows = one_epoch(material)
    assert len(owners.unique()) < len(owners), "some questions have several windows"
    assert sorted([*rows, *material.held_out]) == list(range(len(owners)))
    assert not set(owners[rows].tolist()) & set(owners[material.held_out].tolist())


@pytest.mark.parametrize(
    ("make", "head"), [(classification, "SequenceClassification"), (questions, "QuestionAnswering")]
)
@pytest.mark.parametrize("kind", [Finetune, partial(Distill, hidden_loss=0.5, gradient_checkpointing=True)])
def test_encoders_learn(make: Any, head: str, kind: Any, tmp_path: Path, tiny_tokenizer: Any) -> None:
    tokenizer, config = encoder_tokenizer(tiny_tokenizer), make(tmp_path)
    dense = make_encoder(head, vocab_size=len(tokenizer), spread=0.05)
    model = make_encoder(head, vocab_size=len(tokenizer), seed=1, spread=0.05)
    options = kind(steps=24, batch_size=8, learning_rate=3e-3, evaluations=2, dtype="float32")
    material = material_of(options, config, build(config, tokenizer), tokenizer, model)
    around = Surroundings(teacher=dense, folder=tmp_path / "t", keep=0.5, seed=0, report=lambda values, step: None)
    facts = recover(model, options, material, around).facts
    assert facts["outcome"] == "recovered"
    assert facts["task_share"] == (1.0 if kind is Finetune else 0.5)
    every = build(replace(config, calibration=replace(config.calibration, count=None)), tokenizer)
    assert facts["tokens"] == every.lengths[list(islice(material.training, 24 * 8))].sum(), "without padding"


def test_the_divergence_of_answers_does_not_see_padding() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    batch = {"attention_mask": mask, "labels": torch.tensor([[0, 1], [2, 3]])}
    mine, theirs = (_answers(seed) for seed in (0, 1))
    found = float(divergence(mine, theirs, batch, 2.0))
    expected = 0.0
    for name in ("start_logits", "end_logits"):
        for row in range(2):
            own = mask[row].bool()
            q, p = (torch.log_softmax(out[name][row, own] / 2, -1) for out in (mine, theirs))
            expected += float((p.exp() * (p - q)).sum())
    assert found == pytest.approx(4 * expected / 4, rel=1e-5)
    assert float(divergence(theirs, theirs, batch, 1.0)) == pytest.approx(0, abs=1e-6)
    assert float(task_loss(mine, batch)) > 0
    assert IMPOSSIBLE < -1000


def _answers(seed: int) -> Any:
    from transformers.modeling_outputs import QuestionAnsweringModelOutput

    generator = torch.Generator().manual_seed(seed)
    return QuestionAnsweringModelOutput(
        start_logits=torch.randn(2, 4, generator=generator), end_logits=torch.randn(2, 4, generator=generator)
    )


def test_models_of_another_vocabulary_are_no_teachers(tiny_llama: Any) -> None:
    ids = torch.zeros(2, 4, dtype=torch.long)
    mine, theirs = (tiny_llama(vocab_size=size)(ids) for size in (300, 200))
    with pytest.raises(UsageError, match="not of one kind and vocabulary"):
        divergence(mine, theirs, {"labels": ids}, 1.0)


def test_endless_has_no_length() -> None:
    assert list(islice(Endless(lambda number: iter([number])), 3)) == [0, 1, 2]
    assert Endless(lambda number: iter(())).empty
