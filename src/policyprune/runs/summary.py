"""The summary of one run, from its record."""

import json
from pathlib import Path

from tabulate import tabulate

from policyprune.runs.record import Record, ResultRow
from policyprune.runs.rows import distinctions, noise
from policyprune.storage.record_file import RECORD_FILE

LABELS = {
    "dense": "dense",
    "pruned": "{found}",
    "tuned": "{found}, tuned",
    "reloaded": "{found}, reloaded",
    "evaluated": "evaluated",
}


def summary(record: Record, style: str = "simple") -> str:
    """A table with a column per subject and a row per metric and protocol; `style` is one of tabulate's."""
    verb = "fine_tuned" if "training" in record.config else "evaluated"
    optimizer = record.config.get("optimizer", {"name": verb})  # those have none
    found = "searched" if record.search.get("forwards") else optimizer["name"].replace("_", " ")
    columns: list[str] = []
    lines: dict[str, dict[str, ResultRow]] = {}
    places: list[tuple[str, str]] = []  # metric and column of each row
    for row in record.results:
        column = LABELS.get(row.subject, "{metric} only, {scope}").format(
            found=found,
            metric=record.config.get("importance", {}).get("name"),
            scope=str(row.protocol.get("scope")).replace("_", "-"),
        )
        if column not in columns:
            columns.append(column)
        places.append((_metric(row), column))
    words = distinctions([f"{metric}: {column}" for metric, column in places], [row.protocol for row in record.results])
    for row, (metric, column), word in zip(record.results, places, words, strict=True):
        lines.setdefault(f"{metric}, {word}" if word else metric, {})[column] = row
    body = [[name, *(_cell(cells.get(column)) for column in columns)] for name, cells in lines.items()]
    for stage in record.stages:
        if stage["name"] in ("search", "tuning"):
            searching = stage["name"] == "search"
            seconds = record.search.get("seconds", stage["seconds"]) if searching else stage["seconds"]
            cell = f"{seconds:,.2f}"  # of the search with what processes before this one spent
            owner = found if searching else f"{found}, tuned"
            body.append([f"{stage['name']} time, s", *(cell if column == owner else "" for column in columns)])
    return tabulate(
        body, tablefmt=style, headers=["", *columns], stralign="right", colalign=("left",), disable_numparse=True
    )


def _metric(row: ResultRow) -> str:
    protocol = row.protocol
    name = row.metric.removesuffix("_ratio").replace("_", " ")
    if row.metric == "perplexity":
        name = f"perplexity, {protocol['length']} tokens"
    elif "task" in protocol:
        name = f"{protocol['task']}, {name}"
    elif "batch_size" in protocol:
        name = f"{name}, {protocol['batch_size']} x {protocol['length']} tokens"
        rounds = protocol.get("repeats")
        name += f", {rounds} round{'' if rounds == 1 else 's'}" if rounds else ""
    elif "split" in protocol:
        name = f"{name}, {protocol['split']}"
    return f"{name}, {row.unit}" if row.unit else name


def _cell(row: ResultRow | None) -> str:
    if row is None:
        return ""
    if row.value is None:
        return "not finite"
    doubt = noise(row.protocol)
    return f"{_number(row, row.value)} ({doubt})" if doubt else _number(row, row.value)


def _number(row: ResultRow, value: float | int) -> str:
    if row.metric.endswith("_ratio"):
        return f"{value:.2f} of dense"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if row.unit or row.metric == "perplexity" else f"{value:.4f}"


def closing_words(record: Record, folder: Path) -> str:
    """Where everything is, and how the checkpoint is loaded."""
    warnings = "".join(f"WARNING: {text}\n" for text in record.warnings)
    checkpoint = folder / "checkpoint"
    if not checkpoint.is_dir():
        return f"{warnings}record: {folder / RECORD_FILE}"
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    architecture, trust = config["architectures"][0], ", trust_remote_code=True" if "auto_map" in config else ""
    kind = architecture.rpartition("For")[2] if "For" in architecture else "CausalLM"  # GPT2LMHeadModel
    return f"""{warnings}record:     {folder / RECORD_FILE}
checkpoint: {checkpoint}

from transformers import AutoModelFor{kind}, AutoTokenizer
model = AutoModelFor{kind}.from_pretrained({str(checkpoint)!r}{trust})
tokenizer = AutoTokenizer.from_pretrained({str(checkpoint)!r})"""
