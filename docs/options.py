"""Write options.md: every key of the configuration, its default, its range and what it means, from the dataclasses.

python docs/options.py [--check]
"""

import dataclasses
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from policyprune.config import registry, schema
from policyprune.config.composition import GROUPS, VERBS
from policyprune.config.fields import in_words
from policyprune.config.registry import conf_dir, options

PAGE = Path(__file__).with_name("options.md")
INTRODUCTION = """\
# Options

Every key of the configuration, as `policyprune` takes it: `group=option` chooses a class or a preset, `key=value` sets
a value. `policyprune --cfg job` shows the values of a command line. This page is written by `docs/options.py` from the
dataclasses, where the defaults stand; presets in `conf/` change some of them.
"""
SINGLE = {  # groups with one class for all their options
    "model": schema.Model,
    "granularity": schema.Granularity,
    "evaluation": schema.Evaluation,
    "export": schema.Export,
}
KINDS: dict[Any, str] = {
    str: "text",
    bool: "true, false",
    int: "whole number",
    float: "number",
    list[str]: "texts",
    list[int]: "whole numbers",
    list[float]: "numbers",
    dict[str, str]: "texts by name",
}
SHOWN = (
    *("model", "task", "granularity", "budget", "importance", "optimizer", "tuning", "recovery"),
    *("evaluation", "export"),
)
ABLE = {
    "shares_masks": "several processes can share its masks",
    "back_propagates": "back-propagates",
    "needs_calibration": "looks at calibration sequences",
    "handles_nested": "units inside others",
    "handles_hidden": "hidden channels",
    "adds_biases": "adds biases",
    "chooses_strength": "kept as far as it lowers the loss of other sequences",
}
BASES = {
    "importance": schema.Importance,
    "optimizer": schema.Optimizer,
    "tuning": schema.Tuning,
    "recovery": schema.Trained,
}
COMMON = {  # groups whose options share keys
    "importance": "All of them have these keys; below stand those that have others, or other defaults.",
    "recovery": "All but `none` have these keys; below stand those that have others, or other defaults.",
}
TITLES = {"config": "A run", "finetune": "policyprune finetune", "recover": "policyprune recover"}
TITLES |= {"evaluate": "policyprune evaluate"}
TITLES |= {"export": "policyprune export", "apply": "policyprune apply"}


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION, f"## {TITLES['config']}\n", table(schema.Config, "")]
    for group in SHOWN:
        parts += [f"## {group}\n", f"Options: {', '.join(f'`{name}`' for name in options(group))}.\n"]
        if group in COMMON:
            parts += [f"{COMMON[group]}\n", table(BASES[group], f"{group}.")]
        for title, kind in classes(group):
            parts += [f"### {title}\n"] if title else []
            parts += [f"{summary(kind)}\n", table(kind, f"{group}.", BASES.get(group))]
    parts += ["## tracker\n", f"Options: {', '.join(f'`{name}`' for name in options('tracker'))}.\n"]
    parts += [f"{summary(schema.Wandb)}\n", table(schema.Wandb, "tracker.")]
    parts += ["## method and experiment\n", "Presets of several groups at once.\n", presets("method", "experiment")]
    for verb, kind in VERBS.items():
        if verb != "config":
            parts += [f"## {TITLES[verb]}\n", f"{summary(kind)}\n", table(kind, "")]
    return "\n".join(parts)


def classes(group: str) -> Iterator[tuple[str, type]]:
    """The classes of a group, each with the options that it stands for."""
    if group in registry.OPTIONS:
        for name in registry.OPTIONS[group]:
            yield f"{group}={name}", registry.option(group, name)
    elif group in SINGLE:
        yield "", SINGLE[group]
    elif group == "budget":
        yield "budget=rate, params, flops", schema.Budget
        yield "budget=latency", schema.LatencyBudget
    else:
        titles = {
            "language_modeling": "Language modelling",
            "chat": "Conversations",
            "mixture": "Mixture",
            "generated": "Generated text",
            "classification": "Classification",
        }
        for name, kind in GROUPS[group].items():
            yield titles.get(name, "Question answering"), kind


def summary(kind: type) -> str:
    """The first paragraph of a class's documentation, and what it declares that it can do."""
    text = " ".join(inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].split())
    able = [words for name, words in ABLE.items() if getattr(kind, name, False)]
    return f"{text} *{'; '.join(able).capitalize()}.*" if able else text


def table(kind: type, prefix: str, base: type | None = None) -> str:
    """A row for each key of a class, those of nested classes included, but none that its base has alike."""
    known = set(keys(base, prefix)) if base else set()
    rows = [f"| {' | '.join(row)} |" for row in keys(kind, prefix) if row not in known]
    return "\n".join(["| key | default | values | meaning |", "|---|---|---|---|", *rows, ""]) if rows else ""


def keys(kind: type, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Key, default, valid values and meaning of each field that may be set."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name, hint = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            if field.default_factory is not dataclasses.MISSING:  # a group of its own has a table of its own
                yield from keys(hint, f"{name}.")  # type: ignore[arg-type]
            continue
        if field.name == "name" and not issubclass(kind, schema.Model):
            continue  # which option it is
        yield f"`{name}`", default_of(field), values_of(hint, field.metadata), field.metadata["help"]


def default_of(field: Any) -> str:
    """As it would stand on the command line."""
    if field.default_factory is not dataclasses.MISSING:
        return f"`{written(field.default_factory())}`"
    return "" if field.default is dataclasses.MISSING else f"`{written(field.default)}`"


def written(value: Any) -> str:
    """A value as YAML has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(written(item) for item in value)}]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).encode("unicode_escape").decode()


def values_of(hint: Any, rule: Any) -> str:
    """The type, or what the values are chosen from, and the range."""
    optional = isinstance(hint, types.UnionType)
    kind = next(part for part in get_args(hint) if part is not type(None)) if optional else hint
    words = KINDS[kind]
    if rule.get("choices"):
        several = "some of " if kind == list[str] else ""
        words = several + ", ".join(f"`{choice}`" for choice in rule["choices"])
    bounds = f" {in_words(rule['bounds'])}" if rule.get("bounds") else ""
    return f"{words}{bounds}{' or null' if optional else ''}"


def presets(*groups: str) -> str:
    """A row for each preset, with the first line of comment in its file."""
    rows = ["| option | what it is |", "|---|---|"]
    for group in groups:
        for name in options(group):
            lines = (conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
            comment = next(line for line in lines if line.startswith("# ") and "@package" not in line)
            rows.append(f"| `{group}={name}` | {comment[2:]} |")
    return "\n".join(rows) + "\n"


def main() -> int:
    """Write the page, or tell whether it is current."""
    if "--check" in sys.argv[1:]:
        return int(PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
