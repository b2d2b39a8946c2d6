"""The short modelling file of a checkpoint that no stock class builds: its text, and how it is told from others."""

import ast
import json
import pprint
import re
from pathlib import Path
from typing import Any

MODULE = "modeling_pruned"
CODE = Path(__file__).with_name("unequal.py")  # read, not imported: this file is asked where torch is not loaded
OLDEST_TRANSFORMERS = "5.15"  # 5.0 reads other numbers for GPT-NeoX, 4 for BERT and others
HEAD = """# Written by policyprune; load with {auto}.from_pretrained(folder, trust_remote_code=True)
import transformers

OLDEST, FOUND = "{oldest}", transformers.__version__
if [int(part) for part in FOUND.split(".")[:2]] < [int(part) for part in OLDEST.split(".")]:
    raise ImportError("{module}.py needs transformers " + OLDEST + " or later, this is " + FOUND)

"""
CLASS = '''

TABLE = {table}


class Pruned{base}({base}):
    """{base} with the widths in config.json: `per_layer_config` of the layers, `kept_hidden_size` between them."""

    def __init__(self, config):
        per_layer = config.to_dict().get("per_layer_config")
        config.per_layer_config = None  # the stock class is built with the dense widths first
        super().__init__(config)
        if per_layer:
            resize(self, TABLE, per_layer)
            config.per_layer_config = per_layer
            config.allow_global_per_layer_attribute_access = True  # generation and others read the dense counts
        if getattr(config, "kept_hidden_size", None):
            narrow(self, TABLE, config.kept_hidden_size)
'''
STATED = re.compile(r"load with (\w+)\.from_pretrained.*\n\nTABLE = (\{.*\})\n\n\nclass Pruned(\w+)\(", re.DOTALL)


def class_name(base: str) -> str:
    """The class in the file of a model of the stock class `base`."""
    return f"Pruned{base}"


def text(auto: str, base: str, table: dict[str, Any]) -> str:
    """The file for the stock class `base`, which `auto` loads; `table` says where its widths are (`unequal.resize`)."""
    source = CODE.read_text(encoding="utf-8")
    source = source.replace("from transformers", f"from transformers import {base}\nfrom transformers", 1)
    data = pprint.pformat(table, width=110, sort_dicts=False)
    return (
        HEAD.format(auto=auto, oldest=OLDEST_TRANSFORMERS, module=MODULE) + source + CLASS.format(table=data, base=base)
    )


def is_ours(content: str) -> bool:
    """Whether a file is what `text` gives: all of it is compared, and the table must be data."""
    match = STATED.search(content)
    if match is None:
        return False
    try:
        table = ast.literal_eval(match[2])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return content == text(match[1], match[3], table)


def brings_only_ours(folder: Path) -> bool:
    """Whether the file that we write is the only code that transformers finds in a checkpoint's folder."""
    if [path.relative_to(folder) for path in folder.rglob("*.py")] != [Path(f"{MODULE}.py")]:
        return False
    for file in folder.glob("*.json"):
        classes = _auto_map(file)
        if classes is None or not all(re.fullmatch(rf"{MODULE}\.Pruned\w+", str(name)) for name in classes):
            return False
    return is_ours((folder / f"{MODULE}.py").read_text(encoding="utf-8"))


def _auto_map(file: Path) -> list[Any] | None:
    """What a JSON file says that classes are loaded from; None where it cannot be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    auto_map = content.get("auto_map", {}) if isinstance(content, dict) else {}
    return list(auto_map.values()) if isinstance(auto_map, dict) else [auto_map]
