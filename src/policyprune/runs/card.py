"""The model card of a checkpoint, from the record of its run.

It is published: of local files it gives the names, and nothing of where they lie or whose they are.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from policyprune.models.modelling_file import OLDEST_TRANSFORMERS
from policyprune.runs.record import Record
from policyprune.runs.summary import summary
from policyprune.storage.files import write_whole
from policyprune.storage.sources import PACKAGE

CARD_FILE = "README.md"
PIPELINES = {"CausalLM": "text-generation", "SequenceClassification": "text-classification"}
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
HUB_FILE = re.compile(r"\w[\w.-]*/\w[\w.-]*/[\w./-]+\.gguf")
LOCAL = re.compile(r"[/\\~.]|[A-Za-z]:[/\\]|\w+://")  # how a path begins that is none of the hub's
QUOTED = re.compile(r"(['\"`])((?:~|\.|[A-Za-z]:)?[/\\].*?)\1")
BARE = re.compile(r"(?<![\w:/.~-])(?:~|\.{1,2}|[A-Za-z]:)?(?:[/\\][^\s/\\'\"`,;:()]+)+[/\\]?")


def write_card(record: Record, checkpoint: Path, source: str) -> None:
    """Write README.md into a checkpoint, atomically; `source` is where the dense model came from."""
    stated = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    text = card(record, source, stated["architectures"][0], "auto_map" in stated)
    write_whole(checkpoint / CARD_FILE, text.encode())


def card(record: Record, source: str, architecture: str, remote_code: bool) -> str:
    """Front matter, what was pruned and trained, numbers and command; of local files no more than their names."""
    config = record.config
    head = architecture.rpartition("For")[2]
    front: dict[str, Any] = {"library_name": "transformers"}
    if HUB_ID.fullmatch(source) and of_hub(source):
        front["base_model"] = source
        front["base_model_relation"] = "finetune"
    front["pipeline_tag"] = PIPELINES.get(head, "question-answering")
    front["tags"] = ["policyprune", "pruning", "structured-pruning"]
    name = config["model"]["name"]
    if "budget" in config:
        front["tags"].append(config["optimizer"]["name"])
        title, made = f"{name}, pruned to {config['budget']['keep']:.0%}", "structured pruning"
        facts = _pruning(record)
    else:
        title, made = f"{name}, trained back", "training a pruned model"
        facts = _before(record)
    facts += _training(record) if record.recovery else []
    trust = ", trust_remote_code=True" if remote_code else ""
    needed = (
        "No stock class has these widths, so the checkpoint brings a short modelling file; it needs "
        f"transformers {OLDEST_TRANSFORMERS} or later and refuses older versions."
        if remote_code
        else f"A stock class, made with transformers {record.versions['transformers']}; config.json also has the names "
        "that transformers 4.57 reads."
    )
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# {title}

Made from `{public_source(source, name)}` by {made} with policyprune.

{chr(10).join(f"- {fact}" for fact in facts)}

```python
from transformers import AutoModelFor{head}, AutoTokenizer

model = AutoModelFor{head}.from_pretrained("path/to/this"{trust})
tokenizer = AutoTokenizer.from_pretrained("path/to/this")
```

{needed}

## Numbers

{_numbers(record)}

## Command

```
{shlex.join(["policyprune", *map(public_argument, record.command[1:])])}
```
"""


def _pruning(record: Record) -> list[str]:
    """What a run pruned, and how."""
    config, budget, tuning = record.config, record.config["budget"], record.config["tuning"]["name"]
    searched = f", {record.search['forwards']:,} forward passes" if record.search.get("forwards") else ""
    tuned = "" if tuning == "none" else f", then scales for the kept units (`{tuning}`)"
    return [
        f"units: {' and '.join(config['granularity']['units'])} (`{config['granularity']['name']}`)",
        f"budget: {budget['keep']:g} of `{budget['name']}`, {budget['scope'].replace('_', ' ')}",
        f"method: `{config['optimizer']['name']}` from `{config['importance']['name']}`{searched}{tuned}",
        f"calibrated on `{config['task']['name']}`, seed {config['seed']}",
    ]


def _before(record: Record) -> list[str]:
    """What is known of a checkpoint that was trained back."""
    config = record.config
    kept = f", {config['keep']:g} of the dense model" if config["keep"] is not None else ""
    tuned = f", tuned by `{config['tuned']}`" if config["tuned"] else ""
    by = f", pruned by `{config['pruned_by']}`" if config["pruned_by"] else ""
    return [
        f"from the checkpoint `{public_source(config['model']['source'], config['model']['name'])}`{by}{kept}{tuned}"
    ]


def _training(record: Record) -> list[str]:
    """How the smaller model was trained, on what, and what that gained."""
    facts, teacher = record.recovery, record.recovery["teacher"]
    held, items = facts["held_out"], f"sequences of {facts['length']} tokens" if "length" in facts else "examples"
    how = "trained on the task's loss"
    if teacher is not None:
        how = f"distilled from the dense model `{public_source(teacher, record.config['model']['name'])}`"
    adapters = " by low-rank adapters, which are merged" if facts["method"] == "lora" else ""
    stays = "" if facts["outcome"] == "recovered" else "; the model is as it was before"
    return [
        f"then {how}{adapters}",
        f"trained on `{facts['task']}`: {facts['tokens']:,} tokens in {facts['steps']:,} steps of {facts['batch']} "
        f"{items}, learning rate {facts['learning_rate']:g}, seed {record.config['seed']}",
        f"loss on {held['items']} {items} that were held out: {held['before']:.3f} before, {held['after']:.3f} after"
        f"{stays}",
    ]


def of_hub(source: str) -> bool:
    """Whether a source is a model or a file of the hub, and none on this disk."""
    return bool(HUB_ID.fullmatch(source) or HUB_FILE.fullmatch(source)) and not Path(source).exists()


def public_source(source: str, name: str) -> str:
    """A source that everyone can read, otherwise `name`."""
    return source if source.startswith(PACKAGE) or of_hub(source) else name


def public_argument(text: str) -> str:
    """An argument of the command line with the names of local files instead of their paths."""
    return "".join(_word(word) for word in re.split(r"([\[\]{},'\"=]|(?<=\w\w):(?!//))", text))


def public_prose(text: str) -> str:
    """The same of a sentence, where only what begins like a path is known to be one."""
    quoted = QUOTED.sub(lambda match: f"{match[1]}{_name(match[2])}{match[1]}", text)
    return BARE.sub(lambda match: _name(match[0]), quoted)


def _numbers(record: Record) -> str:
    warnings = "".join(f"**Warning:** {public_prose(text)}\n\n" for text in record.warnings)
    return warnings + (summary(record, "github") if record.results else "Nothing was measured.")


def _word(word: str) -> str:
    if word.startswith(PACKAGE) or not re.search(r"[/\\]", word) or of_hub(word):
        return word
    local = LOCAL.match(word) or word.count("/") > 1 or Path(word).suffix or Path(word).exists()
    return _name(word) if local else word


def _name(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path
