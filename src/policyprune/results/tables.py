"""The summary of one run, from its record."""

from pathlib import Path
from typing import Any

from tabulate import tabulate

from policyprune.results.record import FILE, Record, Row

LABELS = {"dense": "dense", "pruned": "pruned", "reloaded": "pruned, reloaded"}


def summary(record: Record) -> str:
    """A table with a column per subject and a row per metric and protocol."""
    columns: list[str] = []
    lines: dict[str, dict[str, Any]] = {}
    for row in record.results:
        column = _subject(row, record)
        if column not in columns:
            columns.append(column)
        lines.setdefault(_metric(row), {})[column] = row
    for stage in record.stages:
        if stage["name"] == "search" and record.search:
            lines["search time, s"] = {_pruned(record): Row("pruned", "search", stage["seconds"], "s", {})}
    body = [[name, *(_cell(cells.get(column)) for column in columns)] for name, cells in lines.items()]
    return tabulate(body, headers=["", *columns], stralign="right", colalign=("left",), disable_numparse=True)


def _pruned(record: Record) -> str:
    return "one shot" if record.search.get("forwards") == 0 else "searched"


def _subject(row: Row, record: Record) -> str:
    if row.subject == "one_shot":
        scope = row.protocol["scope"].replace("_", "-")
        return f"{record.config['importance']['name']} only, {scope}"
    return LABELS[row.subject].replace("pruned", _pruned(record))


def _metric(row: Row) -> str:
    name = row.metric.replace("_", " ")
    if row.metric == "perplexity":
        name = f"perplexity, {row.protocol['length']} tokens"
    if row.metric == "latency":
        name = f"latency, {row.protocol['batch_size']} x {row.protocol['length']} tokens"
    return f"{name}, {row.unit}" if row.unit else name


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row.value is None:
        return "not finite"
    return f"{row.value:,}" if isinstance(row.value, int) else f"{row.value:,.2f}"


def closing_words(record: Record, folder: Path) -> str:
    """Where everything is, and how the checkpoint is loaded."""
    checkpoint = folder / "checkpoint"
    if not checkpoint.is_dir():
        return f"record: {folder / FILE}"
    return f"""record:     {folder / FILE}
checkpoint: {checkpoint}

from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(checkpoint)!r}, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained({str(checkpoint)!r})"""
