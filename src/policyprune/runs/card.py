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
RECOVERED = {
    "distill": "distilled from the dense model",
    "lora": "distilled from the dense model by low-rank adapters, which are merged",
    "finetune": "trained on the task's loss",
}
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
    """Front matter, method, budget, numbers and command; of local files no more than their names."""
    config = record.config
    head = architecture.rpartition("For")[2]
    front: dict[str, Any] = {"library_name": "transformers"}
    if HUB_ID.fullmatch(source) and of_hub(source):
        front["base_model"] = source
        front["base_model_relation"] = "finetune"
    front["pipeline_tag"] = PIPELINES.get(head, "question-answering")
    front["tags"] = ["policyprune", "pruning", "structured-pruning", config["optimizer"]["name"]]
    budget, tuning = config["budget"], config["tuning"]["name"]
    tuned = "" if tuning == "none" else f", then scales for the kept units (`{tuning}`)"
    trained = f", then {RECOVERED[record.recovery['method']]}" if record.recovery else ""
    units = " and ".join(config["granularity"]["units"])
    searched = f", {record.search['forwards']:,} forward passes" if record.search.get("forwards") else ""
    name = config["model"]["name"]
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

# {name}, pruned to {budget["keep"]:.0%}

Made from `{public_source(source, name)}` by structured pruning with policyprune.

- units: {units} (`{config["granularity"]["name"]}`)
- budget: {budget["keep"]:g} of `{budget["name"]}`, {budget["scope"].replace("_", " ")}
- method: `{config["optimizer"]["name"]}` from `{config["importance"]["name"]}`{searched}{tuned}{trained}
- calibrated on `{config["task"]["name"]}`, seed {config["seed"]}

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
