"""The model card of a checkpoint, from the record of its run."""

import json
import shlex
from pathlib import Path
from typing import Any

import yaml

from policyprune.models.modelling_file import OLDEST
from policyprune.runs.published import HUB_ID, argument, of_hub, prose, source_name
from policyprune.runs.record import Record
from policyprune.runs.summary import summary
from policyprune.storage.files import write_whole

FILE = "README.md"
PIPELINES = {"CausalLM": "text-generation", "SequenceClassification": "text-classification"}


def write_card(record: Record, checkpoint: Path, source: str) -> None:
    """Write README.md into a checkpoint, atomically; `source` is where the dense model came from."""
    stated = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    text = card(record, source, stated["architectures"][0], "auto_map" in stated)
    write_whole(checkpoint / FILE, text.encode())


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
    units = " and ".join(config["granularity"]["units"])
    searched = f", {record.search['forwards']:,} forward passes" if record.search.get("forwards") else ""
    name = config["model"]["name"]
    trust = ", trust_remote_code=True" if remote_code else ""
    needed = (
        "No stock class has these widths, so the checkpoint brings a short modelling file; it needs "
        f"transformers {OLDEST} or later and refuses older versions."
        if remote_code
        else f"A stock class, made with transformers {record.versions['transformers']}; config.json also has the names "
        "that transformers 4.57 reads."
    )
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# {name}, pruned to {budget["keep"]:.0%}

Made from `{source_name(source, name)}` by structured pruning with policyprune.

- units: {units} (`{config["granularity"]["name"]}`)
- budget: {budget["keep"]:g} of `{budget["name"]}`, {budget["scope"].replace("_", " ")}
- method: `{config["optimizer"]["name"]}` from `{config["importance"]["name"]}`{searched}{tuned}
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
{shlex.join(["policyprune", *map(argument, record.command[1:])])}
```
"""


def _numbers(record: Record) -> str:
    warnings = "".join(f"**Warning:** {prose(text)}\n\n" for text in record.warnings)
    return warnings + (summary(record, "github") if record.results else "Nothing was measured.")
