"""The table at the end of a run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from policyprune.runs.record import Record
from policyprune.runs.summary import closing_words, noise, summary


def measured_record(forwards: int = 8) -> Record:
    """A record with every kind of row."""
    record = Record(
        config={"importance": {"name": "wanda_sp"}, "optimizer": {"name": "one_shot"}}, config_hash="", hardware={}
    )
    record.search = {"forwards": forwards}
    record.stages = [{"name": "load", "seconds": 1.0}, {"name": "search", "seconds": 77.125}]
    for length, dense, one_shot, pruned in [(32, 10.5, 40.25, 20.125), (64, 9.5, 39.25, 19.125)]:
        protocol = {"length": length}
        record.add("dense", "perplexity", dense, "", protocol)
        record.add("one_shot", "perplexity", one_shot, "", {**protocol, "scope": "per_layer"})
        record.add("pruned", "perplexity", pruned, "", protocol)
        record.add("reloaded", "perplexity", pruned, "", protocol)
    for subject, value in (("dense", 11.25), ("pruned", 44.5)):
        record.add(subject, "perplexity", value, "", {"text": "news", "test_text": "abc", "length": 32})
    record.add("dense", "parameters", 1234567, "", {})
    record.add("pruned", "parameters", 1000001, "", {})
    record.add("dense", "latency", 12.345, "ms", {"batch_size": 2, "length": 16})
    shape = {"batch_size": 8, "length": 128, "repeats": 5}
    record.add("pruned", "latency_ratio", 0.8125, "", {**shape, "spread": 0.02})
    record.add("dense", "latency", 1200.0, "ms", {**shape, "spread": 0.04})
    record.add("pruned", "latency", 975.0, "ms", {**shape, "spread": 0.3})
    record.add("pruned", "block_macs", None, "", {})
    record.add("dense", "acc_norm", 0.5, "", {"task": "arc_easy", "split": "validation"}, 0.01)
    record.add("pruned", "acc_norm", 0.25, "", {"task": "arc_easy", "split": "validation"}, None)
    record.add("dense", "acc_norm", 0.75, "", {"task": "piqa", "split": "validation"}, 0.01)
    return record


def cells(table: str, row: str) -> list[str]:
    """The entries of the row that begins with `row`."""
    return next(line for line in table.splitlines() if line.startswith(row)).removeprefix(row).split()


def test_every_number_is_in_its_row() -> None:
    table = summary(measured_record())
    assert cells(table, "perplexity, 32 tokens") == ["10.50", "40.25", "20.12", "20.12"]
    assert cells(table, "perplexity on news, 32 tokens") == ["11.25", "44.50"]
    assert cells(table, "perplexity, 64 tokens") == ["9.50", "39.25", "19.12", "19.12"]
    assert cells(table, "parameters") == ["1,234,567", "1,000,001"]
    assert cells(table, "latency, 2 x 16 tokens, ms") in (["12.35"], ["12.34"])
    assert cells(table, "arc_easy, acc norm") == ["0.5000", "0.2500"]
    assert cells(table, "piqa, acc norm") == ["0.7500"]
    assert cells(table, "block macs") == ["not", "finite"]
    assert cells(table, "search time, s") in (["77.12"], ["77.13"])


def test_the_search_is_timed_where_the_tuned_model_alone_is_measured() -> None:
    record = measured_record()
    record.results = [replace(row, subject="tuned") for row in record.results if row.subject == "pruned"]
    assert cells(summary(record), "search time, s") in (["77.12"], ["77.13"])


def test_a_latency_is_a_share_of_the_dense_one_and_noise_is_said() -> None:
    lines = summary(measured_record()).splitlines()
    start = next(number for number, line in enumerate(lines) if "8 x 128" in line)
    assert lines[start].split("rounds")[1].split("  ")[-1].strip() == "0.81 of dense"
    assert lines[start + 1].startswith("latency, 8 x 128 tokens, 5 rounds, ms")
    assert "1,200.00 " in lines[start + 1]
    assert "975.00 (noisy, spread 30 %)" in lines[start + 1]


def test_noise_of_one_round_and_of_none() -> None:
    assert noise({"spread": 0.1, "repeats": 3}) == ""
    assert noise({"spread": None, "repeats": 1}) == "one round"
    assert noise({}) == ""


def test_rows_of_one_name_have_lines_of_their_own() -> None:
    record = measured_record()
    for limit, value in ((10, 0.125), (20, 0.375)):
        for subject in ("dense", "pruned"):
            record.add(subject, "acc", value, "", {"task": "boolq", "limit": limit})
    table = summary(record)
    assert cells(table, "boolq, acc, limit 10") == ["0.1250", "0.1250"]
    assert cells(table, "boolq, acc, limit 20") == ["0.3750", "0.3750"]


def test_columns_name_what_was_measured() -> None:
    header = summary(measured_record()).splitlines()[0]
    assert "dense" in header
    assert "wanda_sp only, per-layer" in header
    assert "searched, reloaded" in header
    header = summary(measured_record(forwards=0)).splitlines()[0]
    assert "one shot, reloaded" in header
    assert "searched" not in header


def test_numbers_stand_under_their_column() -> None:
    lines = summary(measured_record()).splitlines()
    row = next(line for line in lines if line.startswith("parameters"))
    end = lines[0].index("searched") + len("searched")
    assert row[:end].endswith("1,000,001")


@pytest.mark.parametrize(
    ("code", "trust"),
    [({"auto_map": {"AutoModelForSequenceClassification": "a.B"}}, ", trust_remote_code=True"), ({}, "")],
)
def test_closing_words_name_the_checkpoint_when_there_is_one(
    code: dict[str, object], trust: str, tmp_path: Path
) -> None:
    """And trust its code where it has any."""
    record = measured_record()
    assert "from_pretrained" not in closing_words(record, tmp_path)
    (tmp_path / "checkpoint").mkdir()
    config = {"architectures": ["PrunedBertForSequenceClassification"], **code}
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    words = closing_words(record, tmp_path)
    assert "from transformers import AutoModelForSequenceClassification, AutoTokenizer" in words
    assert f"from_pretrained({str(tmp_path / 'checkpoint')!r}{trust})" in words
    assert str(tmp_path / "record.json") in words


@pytest.mark.parametrize(
    ("device", "kept", "said"), [("NVIDIA H200", 13, True), ("NVIDIA H200", 16, False), ("cpu", 13, False)]
)
def test_closing_words_say_what_would_be_faster_on_a_gpu(device: str, kept: int, said: bool, tmp_path: Path) -> None:
    record = replace(measured_record(), hardware={"device": device})
    record.keep_rates = [
        {"layer": layer, "kind": "ffn", "kept": own, "count": 30, "rate": own / 30}
        for layer, own in enumerate((kept, 8, 30))
    ]
    words = closing_words(record, tmp_path)
    assert ("1 of 2 pruned FFNs have a width that is no multiple of 8" in words) == said
    assert ("granularity.align=64" in words) == said
