"""The summary of one run, from its record: what names each measured row, and whether a time is noisy."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from policyprune.runs.record import Record, ResultRow
from policyprune.storage.record_file import RECORD_FILE

LABELS = {  # of columns; `mask` says how the mask was found
    "dense": "dense",
    "one_shot": "{importance} only, {scope}",
    "pruned": "{mask}",
    "tuned": "{mask}, tuned",
    "recovered": "{mask}, recovered",
    "reloaded": "{mask}, reloaded",
    "evaluated": "evaluated",
}
NOISY = 0.10  # of the median: a time is called noisy where the interquartile range of its rounds is wider


def summary(record: Record, style: str = "simple") -> str:
    """A table with a column per subject and a row per metric and protocol; `style` is one of tabulate's."""
    labels = [_label(record, row) for row in record.results]
    metrics = [_metric(row) for row in record.results]
    names = [f"{metric}: {label}" for metric, label in zip(metrics, labels, strict=True)]
    words = distinctions(names, [row.protocol for row in record.results])
    lines: dict[str, dict[str, ResultRow]] = {}
    for row, label, metric, word in zip(record.results, labels, metrics, words, strict=True):
        lines.setdefault(f"{metric}, {word}" if word else metric, {})[label] = row
    columns = list(dict.fromkeys(labels))
    body = [[name, *(_cell(cells.get(column)) for column in columns)] for name, cells in lines.items()]
    for stage, label in (("search", "{mask}"), ("tuning", "{mask}, tuned"), ("recovery", "{mask}, recovered")):
        for seconds in _seconds(record, stage):
            own = label.format(mask=_mask(record))
            column = own if own in columns else next(iter(columns[-1:]), own)  # of a tuned model, its own alone
            body.append([f"{stage} time, s", *(f"{seconds:,.2f}" if name == column else "" for name in columns)])
    return tabulate(
        body, tablefmt=style, headers=["", *columns], stralign="right", colalign=("left",), disable_numparse=True
    )


def _label(record: Record, row: ResultRow) -> str:
    return LABELS.get(row.subject, row.subject).format(
        mask=_mask(record),
        importance=record.config.get("importance", {}).get("name"),
        scope=str(row.protocol.get("scope")).replace("_", "-"),
    )


def _mask(record: Record) -> str:
    """How the mask was found, or what else was done."""
    if record.search.get("forwards"):
        return "searched"
    otherwise = "fine_tuned" if "training" in record.config else "pruned" if record.recovery else "evaluated"
    return str(record.config.get("optimizer", {"name": otherwise})["name"]).replace("_", " ")


def _seconds(record: Record, stage: str) -> list[float]:
    """Seconds of a stage, of the search with what earlier processes spent on it; none where it was not reached."""
    seconds = [entry["seconds"] for entry in record.stages if entry["name"] == stage]
    return [record.search.get("seconds", value) for value in seconds] if stage == "search" else seconds


def _metric(row: ResultRow) -> str:
    protocol = row.protocol
    name = row.metric.removesuffix("_ratio").replace("_", " ")
    if row.metric == "perplexity":
        text = f" on {protocol['text']}" if "text" in protocol else ""
        name = f"perplexity{text}, {protocol['length']} tokens"
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
    """Where everything is, how the checkpoint is loaded, and what would make it faster on the GPU of the run."""
    warnings = "".join(f"WARNING: {text}\n" for text in record.warnings) + _faster(record)
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


def _faster(record: Record) -> str:
    """A line where FFNs of a model that was pruned on a GPU have widths that its matrix products are slow at."""
    cut = [row["kept"] for row in record.keep_rates if row["kind"] == "ffn" and 0 < row["kept"] < row["count"]]
    odd = sum(kept % 8 > 0 for kept in cut)
    if not odd or record.hardware.get("device") == "cpu":
        return ""
    return (
        f"{odd} of {len(cut)} pruned FFNs have a width that is no multiple of 8, at which GPUs are slow in half "
        "precision: granularity.align=64 prunes to multiples\n"
    )


def distinctions(names: Sequence[str], protocols: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each row the words that tell it from other rows of the same name; "" where no other has its name.

    The words are `key value` for each part of the protocol in which rows of that name differ, and a number where they
    differ in none.
    """
    groups: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        groups.setdefault(name, []).append(number)
    words = [""] * len(names)
    for members in groups.values():
        if len(members) > 1:
            namesakes = [protocols[number] for number in members]
            keys = [key for key in dict.fromkeys(key for each in namesakes for key in each) if _differs(key, namesakes)]
            texts = [", ".join(f"{key} {each[key]}" for key in keys if key in each) for each in namesakes]
            count = Counter(texts)
            for place, (number, text) in enumerate(zip(members, texts, strict=True), start=1):
                words[number] = text if text and count[text] == 1 else f"{text} no. {place}".strip()
    return words


def noise(protocol: Mapping[str, Any]) -> str:
    """What a reader of a time or a ratio has to know of its rounds: `noisy, spread 23 %`; "" where all is well."""
    if "spread" not in protocol:
        return ""  # no time
    spread = protocol["spread"]
    if spread is None:
        return "one round"
    return f"noisy, spread {100 * spread:.0f} %" if spread > NOISY else ""


def _differs(key: str, protocols: Sequence[Mapping[str, Any]]) -> bool:
    return len({repr(each.get(key)) for each in protocols}) > 1
