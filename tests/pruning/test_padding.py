"""No metric, tuning or loss sees padding: more columns of it change nothing."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, LlamaConfig, PreTrainedModel

import harness
from encoders import make_encoder
from policyprune.config.registry import names, option
from policyprune.config.schema import Classification, QuestionAnswering
from policyprune.models.adapter import Adapter, adapt
from policyprune.pruning.importance.evidence import Evidence
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import Space, space_of
from policyprune.tasks import Task
from policyprune.tasks.classification import ClassificationTask, LabelledExamples
from policyprune.tasks.labelled import Encoded
from policyprune.tasks.question_answering import QuestionAnsweringTask, Windows
from policyprune.tuning.teacher_student import Lesson

validated = cache(harness.validated)
LENGTHS, PAD, MORE = torch.tensor([5, 9, 12, 7, 12, 3]), 2, 8


@dataclass(frozen=True)
class Padded(Encoded):
    """The same examples behind `MORE` columns of padding more than the longest of a batch needs."""

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        found = super().inputs(rows)
        padding = {name: torch.full((len(rows), MORE), PAD if name == "input_ids" else 0) for name in found}
        return {name: torch.cat([tensor, padding[name]], 1) for name, tensor in found.items()}


def examples(kind: type[Encoded]) -> Encoded:
    mask = torch.arange(12) < LENGTHS[:, None]
    drawn = torch.randint(3, 300, mask.shape, generator=torch.Generator().manual_seed(0))
    return kind({"input_ids": torch.where(mask, drawn, PAD), "attention_mask": mask.long()}, LENGTHS)


def encoder(labels: int = 2) -> PreTrainedModel:
    return make_encoder(num_labels=labels, pad_token_id=PAD)


def decoder(labels: int = 2) -> PreTrainedModel:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24}
    config = LlamaConfig(vocab_size=300, num_hidden_layers=3, num_labels=labels, pad_token_id=PAD, **sizes)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return model  # type: ignore[no-any-return]


def classification(encoded: Encoded, classes: int = 2) -> ClassificationTask:
    config = validated("task=glue/sst2", "model=bert_base").task
    assert isinstance(config, Classification)
    labels = torch.arange(len(LENGTHS)) % 2 if classes > 1 else torch.linspace(0, 5, len(LENGTHS))
    calibration = LabelledExamples(encoded, labels)
    return ClassificationTask(calibration=calibration, tests={}, config=replace(config, classes=classes))


def questions(encoded: Encoded) -> QuestionAnsweringTask:
    config = validated("task=squad_v1", "model=bert_base").task
    assert isinstance(config, QuestionAnswering)
    spans = torch.stack([torch.zeros_like(LENGTHS), LENGTHS - 1], 1)
    windows = Windows(encoded=encoded, question=torch.arange(len(LENGTHS)), offsets=[], spans=spans)
    return QuestionAnsweringTask(calibration=windows, tests={}, config=config)


def same(found: Callable[[Encoded], Any]) -> None:
    """Equal to rounding, which the solvers of the tunings magnify."""
    torch.testing.assert_close(found(examples(Padded)), found(examples(Encoded)), rtol=2e-3, atol=1e-4)


def parts(model: PreTrainedModel) -> tuple[Adapter, Space]:
    adapter = adapt(model)
    return adapter, space_of(adapter, ["attention", "ffn"])


@pytest.mark.parametrize("make", [encoder, decoder])
@pytest.mark.parametrize("name", names("importance"))
def test_no_score_sees_padding(name: str, make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    adapter, space = parts(model)
    rows = [torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])]

    def scores(encoded: Encoded) -> Tensor:
        task = classification(encoded)
        evidence = Evidence(
            prunable=PrunableModel(model, adapter, space),
            rows=rows,
            inputs=task.inputs,
            loss=lambda own: task.loss(model, own),
            keep=0.5,
            seed=0,
        )
        scores: Tensor = option("importance", name)().score(evidence)
        return scores

    same(scores)


@pytest.mark.parametrize("first_token", [False, True])
@pytest.mark.parametrize("make", [encoder, decoder])
@pytest.mark.parametrize("name", [name for name in names("tuning") if name != "none"])
def test_no_tuning_sees_padding(name: str, make: Callable[[], PreTrainedModel], first_token: bool) -> None:
    model = make()
    adapter, space = parts(model)
    mask = torch.arange(space.n) % 3 > 0
    config = validated(f"tuning={name}").tuning

    def compensation(encoded: Encoded) -> list[dict[Any, Tensor]]:
        rows = [torch.tensor(own) for own in ([0, 1, 2], [3, 4, 5])]
        lesson = Lesson([encoded.inputs(own) for own in rows], first_token, rows, rows[0], classification(encoded))
        fitted = config.fit(PrunableModel(model, adapter, space), mask, lesson)
        found, report = fitted.compensation, fitted.report
        errors = {f"{row['kind']}.{row['layer']}": torch.tensor(float(row["error"])) for row in report}
        scales = {} if found.scales is None else {"scales": found.scales}
        return [scales, found.weights, found.biases, errors]

    same(compensation)


@pytest.mark.parametrize(
    ("make", "task"),
    [
        (encoder, classification),
        (decoder, classification),
        (lambda: encoder(1), lambda own: classification(own, 1)),
        (lambda: make_encoder("QuestionAnswering", pad_token_id=PAD), questions),
    ],
    ids=["encoder", "decoder", "regression", "questions"],
)
def test_no_loss_sees_padding(make: Callable[[], PreTrainedModel], task: Callable[[Encoded], Task]) -> None:
    model = make()
    same(lambda encoded: task(encoded).loss(model, torch.arange(len(LENGTHS))))
