"""The model card, from a record."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import validated
from policyprune.runs.card import card, public_argument, public_prose, write_card
from policyprune.runs.record import Record


def record(**changes: Any) -> Record:
    from dataclasses import asdict

    made = Record(config=asdict(validated(*changes.pop("overrides", []))), config_hash="0", hardware={})
    made.command = ["/bin/policyprune", "budget.keep=0.7", "task.files=[a b.txt]"]
    made.search = {"forwards": 1600}
    made.add("dense", "perplexity", 12.34, "", {"length": 128})
    made.add("pruned", "perplexity", 23.45, "", {"length": 128})
    return made


def front(text: str) -> dict[str, Any]:
    content = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(content, dict)
    return content


def test_a_card_has_method_budget_numbers_and_command() -> None:
    text = card(record(overrides=["budget.keep=0.7"]), "HuggingFaceTB/SmolLM2-135M", "PrunedLlamaForCausalLM", True)
    stated = front(text)
    assert stated["base_model"] == "HuggingFaceTB/SmolLM2-135M"
    assert stated["library_name"] == "transformers"
    assert stated["pipeline_tag"] == "text-generation"
    assert {"policyprune", "pruning", "levels"} <= set(stated["tags"])
    assert "pruned to 70%" in text
    assert "budget: 0.7 of `rate`, global" in text
    assert "1,600 forward passes" in text
    row = next(line for line in text.splitlines() if line.startswith("| perplexity, 128 tokens"))
    assert [cell.strip() for cell in row.split("|")[2:4]] == ["12.34", "23.45"]
    assert "policyprune budget.keep=0.7 'task.files=[a b.txt]'" in text
    assert "trust_remote_code=True" in text
    assert "needs transformers 5.15 or later and refuses older versions" in text


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("pkg://llm/model.gguf", "pkg://llm/model.gguf"),
        ("/home/joe/disk/model", "smollm2_135m"),
        ("./joe/model", "smollm2_135m"),
        ("~/joe/model.gguf", "smollm2_135m"),
        ("C:\\Users\\joe\\model", "smollm2_135m"),
        ("owner/name/model.gguf", "owner/name/model.gguf"),
    ],
)
def test_a_file_is_no_base_model_on_the_hub_and_is_said_by_name(source: str, said: str) -> None:
    text = card(record(), source, "LlamaForCausalLM", False)
    assert "base_model" not in front(text)
    assert f"Made from `{said}`" in text
    assert "joe" not in text
    assert "trust_remote_code" not in text
    assert "the names that transformers 4.57 reads" in text


def test_a_folder_that_looks_like_a_hub_id_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "joe" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    made = record()
    made.command = ["policyprune", "model.source=joe/model", "task.source=owner/data"]
    text = card(made, "joe/model", "LlamaForCausalLM", False)
    assert "base_model" not in front(text)
    assert "joe" not in text
    assert "policyprune model.source=model task.source=owner/data" in text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("model.source=/home/joe/my model", "model.source=my model"),
        ("model.source='/home/joe/a b/epoch=3'", "model.source='epoch=3'"),
        ("task.files=[/home/joe/a.txt,'~/joe/b c.txt',joe/c/d.txt]", "task.files=[a.txt,'b c.txt',d.txt]"),
        ("task.data_files={train:/home/joe/a.csv,test:b.csv}", "task.data_files={train:a.csv,test:b.csv}"),
        ("+task.data_files.train=/home/joe/a.csv", "+task.data_files.train=a.csv"),
        ("hydra.run.dir=../joe/run/", "hydra.run.dir=run"),
        ("--config-dir=/home/joe/conf", "--config-dir=conf"),
        ("task.files=[https://joe@host/x/a.txt]", "task.files=[a.txt]"),
        ("optimizer.folder=\\\\host\\joe\\run", "optimizer.folder=run"),
        ("model.source=HuggingFaceTB/SmolLM2-135M", "model.source=HuggingFaceTB/SmolLM2-135M"),
        ("model.source=pkg://llm/a/b.gguf", "model.source=pkg://llm/a/b.gguf"),
        ("task=glue/sst2", "task=glue/sst2"),
        ("hydra/launcher=workers", "hydra/launcher=workers"),
        ("budget.keep=.5", "budget.keep=.5"),
        ("~tracker", "~tracker"),
    ],
)
def test_the_command_names_files_and_not_where_they_lie(given: str, said: str) -> None:
    assert public_argument(given) == said


def test_warnings_name_files_and_not_where_they_lie() -> None:
    warning = "read '/home/joe/my data/a.txt' and /home/joe/b.txt, 3/4 of pkg://llm/x and a/b at 10 tokens/s"
    assert public_prose(warning) == "read 'a.txt' and b.txt, 3/4 of pkg://llm/x and a/b at 10 tokens/s"
    made = record()
    made.warnings = ["the weights of /home/joe/model differ"]
    assert "**Warning:** the weights of model differ" in card(made, "a/b", "LlamaForCausalLM", False)


RECOVERY = {
    "method": "lora",
    "outcome": "recovered",
    "task": "wikitext2",
    "length": 128,
    "learning_rate": 2e-4,
    "batch": 8,
    "steps": 128,
    "tokens": 131072,
    "held_out": {"items": 32, "before": 4.21349, "after": 3.85},
    "teacher": "owner/name",
}


def test_a_card_says_how_the_model_was_trained_and_what_that_gained() -> None:
    made = record()
    made.recovery = RECOVERY
    text = card(made, "owner/name", "LlamaForCausalLM", False)
    lines = [line for line in text.splitlines() if line.startswith("- ")][-3:]
    assert lines == [
        "- then distilled from the dense model `owner/name` by low-rank adapters, which are merged",
        "- trained on `wikitext2`: 131,072 tokens in 128 steps of 8 sequences of 128 tokens, learning rate 0.0002, "
        "seed 0",
        "- loss on 32 sequences of 128 tokens that were held out: 4.213 before, 3.850 after",
    ]
    made.recovery = {**RECOVERY, "teacher": None, "outcome": "no gain", "method": "finetune"}
    text = card(made, "owner/name", "LlamaForCausalLM", False)
    assert "- then trained on the task's loss\n" in text
    assert text.count("after; the model is as it was before") == 1


def test_the_card_of_a_checkpoint_that_was_trained_back_says_what_it_was(tmp_path: Path) -> None:
    stated = {"model": {"name": "half", "source": "/home/joe/half"}, "keep": 0.5, "pruned_by": "levels", "tuned": None}
    made = Record(config={**stated, "seed": 3}, config_hash="0", hardware={})
    made.command = ["/bin/policyprune", "recover", "/home/joe/half"]
    made.recovery = RECOVERY
    text = card(made, "owner/name", "LlamaForCausalLM", False)
    assert front(text)["base_model"] == "owner/name"
    assert "# half, trained back" in text
    assert "- from the checkpoint `half`, pruned by `levels`, 0.5 of the dense model\n" in text
    assert "joe" not in text


def test_the_card_is_written_beside_the_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertForSequenceClassification"]}))
    write_card(record(), tmp_path, "a/b")
    text = (tmp_path / "README.md").read_text()
    assert front(text)["pipeline_tag"] == "text-classification"
    assert "AutoModelForSequenceClassification.from_pretrained" in text
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "README.md"}
