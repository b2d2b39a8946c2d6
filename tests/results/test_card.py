"""The model card, from a record."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import settled
from policyprune.results.card import card, write_card
from policyprune.results.record import Record


def record(**changes: Any) -> Record:
    from dataclasses import asdict

    made = Record(config=asdict(settled(*changes.pop("overrides", []))), config_hash="0", hardware={})
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
    assert {"policyprune", "pruning", "policy_gradient"} <= set(stated["tags"])
    assert "pruned to 70%" in text
    assert "budget: 0.7 of `rate`, global" in text
    assert "1,600 forward passes" in text
    row = next(line for line in text.splitlines() if line.startswith("| perplexity, 128 tokens"))
    assert [cell.strip() for cell in row.split("|")[2:4]] == ["12.34", "23.45"]
    assert "policyprune budget.keep=0.7 'task.files=[a b.txt]'" in text
    assert "trust_remote_code=True" in text
    assert "needs transformers 5.15 or later and refuses older versions" in text


@pytest.mark.parametrize("source", ["pkg://llm/model.gguf", "/disk/model", "./model"])
def test_a_file_is_no_base_model_on_the_hub(source: str) -> None:
    text = card(record(), source, "LlamaForCausalLM", False)
    assert "base_model" not in front(text)
    assert f"Made from `{source}`" in text
    assert "trust_remote_code" not in text
    assert "the names that transformers 4.57 reads" in text


def test_the_card_is_written_beside_the_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertForSequenceClassification"]}))
    write_card(record(), tmp_path, "a/b")
    text = (tmp_path / "README.md").read_text()
    assert front(text)["pipeline_tag"] == "text-classification"
    assert "AutoModelForSequenceClassification.from_pretrained" in text
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "README.md"}
