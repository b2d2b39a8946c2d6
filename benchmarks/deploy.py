"""A pruned model in transformers, ONNX Runtime and llama.cpp: do they agree, and how fast is it against the dense one?

    python benchmarks/deploy.py [PART ...] [--keep 0.8 0.5] [--folder outputs/deploy] [key=value ...]

Prunes the configured model (key=value as for policyprune; optimizer=one_shot makes masks in a minute) to each keep
rate, exports it, and measures the parts agreement, torch, onnx and llama_cpp, all by default. What is finished, runs
and parts, stays in the folder and is not repeated, so the command goes on where it was stopped; --again measures the
named parts anew. Prints tables in Markdown of what has been measured so far.
"""

import argparse
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import torch
from deploy_agreement import agreement
from deploy_models import Deployed, deployed
from deploy_speed import in_llama_cpp, in_onnx, in_torch
from llama_cpp import install
from tabulate import tabulate

from policyprune.commands import run as pipeline
from policyprune.config.composition import register
from policyprune.config.registry import conf_dir
from policyprune.config.validate import run_label, validate
from policyprune.runs.record import read_record
from policyprune.storage.files import write_whole
from policyprune.tasks import build
from policyprune.tasks.language_modeling import TextTask

SPEED = {"torch": in_torch, "onnx": in_onnx, "llama_cpp": in_llama_cpp}
PARTS = ("agreement", *SPEED)
RUN = ["evaluation=none"]  # the other exports are written into the run's folder when they are asked for
TARGET = 0.9  # of the promised speed-up, for the blocks in torch


class Point:
    """One keep rate: its run, and the results kept in the run's folder."""

    def __init__(self, keep: float, folder: Path, overrides: list[str]) -> None:
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = hydra.compose("config", [*RUN, *overrides, f"budget.keep={keep}"])
        self.keep, self.config = keep, validate(composed)
        self.folder = folder / run_label(composed)
        self.parts = self.folder / "deploy"

    @cache  # noqa: B019
    def pruned(self) -> Deployed:
        pipeline.run(self.config, self.folder)
        return deployed(self.folder / "checkpoint", self.folder)

    def windows(self, count: int) -> torch.Tensor:
        """Test windows (count, 128) of the run's own text."""
        tokenizer, record = self.pruned().tokenizer, read_record(self.folder)
        assert record is not None
        task = build(replace(self.config.task, bos=record.protocol["bos"]), tokenizer)
        assert isinstance(task, TextTask)
        return task.windows(128, 128 * count)

    def result(self, part: str) -> Any:
        file = self.parts / f"{part}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def keep_result(self, part: str, found: Any) -> None:
        self.parts.mkdir(exist_ok=True)
        write_whole(self.parts / f"{part}.json", json.dumps(found, indent=2).encode())


def agreement_table(points: list[Point]) -> str:
    """Rows by keep rate and runtime; the perplexities beside that of transformers."""
    lines = []
    for point in points:
        found = (point.result("agreement") or {}).get("rows", {})
        for runtime, own in found.items():
            ratio = own["perplexity"] / found["transformers f32"]["perplexity"] - 1
            agree = f"{own['agree']} of {own['of']}"
            gap = f"{own['gap']:.4f}" if own["agree"] < own["of"] else ""
            lines.append([point.keep, runtime, agree, gap, f"{own['perplexity']:.3f}", f"{ratio:+.3%}"])
    headers = ["keep", "runtime", "tokens as transformers", "nats to the first other", "perplexity", "difference"]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def speed_table(points: list[Point]) -> str:
    """Rows by runtime, what was timed, and keep rate."""
    lines = []
    for part in SPEED:
        for index in range(max(len((point.result(part) or {"rows": []})["rows"]) for point in points)):
            for point in points:
                measured = point.result(part)
                if measured is None:
                    continue
                own = measured["rows"][index]
                gain, promised = own["dense"] / own["pruned"], own["promised"]
                lines.append(
                    [
                        f"{part}, {own['what']}",
                        point.keep,
                        f"{1e3 * own['dense']:,.0f}",
                        f"{1e3 * own['pruned']:,.0f}",
                        f"{gain:.2f}",
                        f"{promised:.2f}" if promised else "",
                        f"{gain / promised:.2f}" if promised else "",
                    ]
                )
    headers = ["", "keep", "dense, ms", "pruned, ms", "speed-up", "promised by MACs", "share of the promise"]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--keep", nargs="+", type=float, default=[0.8, 0.5])
    parser.add_argument("--folder", type=Path, default=Path("outputs/deploy"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--windows", type=int, default=16, help="of 128 tokens, for the perplexity")
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_intermixed_args()
    overrides = [own for own in arguments.parts if "=" in own]
    parts = [own for own in arguments.parts if "=" not in own]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: the parts are {', '.join(PARTS)}")
    register()
    points = [Point(keep, arguments.folder, overrides) for keep in arguments.keep]
    if {"agreement", "llama_cpp"} & set(parts or PARTS):
        install()

    @cache
    def dense() -> Deployed:
        return deployed(points[0].config.model.source, arguments.folder / "dense" / points[0].config.model.name)

    for point in points:
        for part in parts or PARTS:
            if point.result(part) is not None and not (arguments.again and part in parts):
                continue
            print(f"keep {point.keep:g}: {part}", flush=True)
            if part == "agreement":
                rows: Any = agreement(point.pruned(), point.windows(arguments.windows))
            else:
                rows = SPEED[part]({"dense": dense(), "pruned": point.pruned()}, arguments.repeats)
            point.keep_result(part, {"threads": torch.get_num_threads(), "repeats": arguments.repeats, "rows": rows})
    done = {part for part in PARTS for point in points if point.result(part) is not None}
    for table, its_parts in ((agreement_table, {"agreement"}), (speed_table, set(SPEED))):
        if done & its_parts:
            print(f"\n{table(points)}")
    speeds = [own for point in points for part in SPEED if (own := point.result(part)) is not None]
    settings = sorted({f"{own['threads']} threads, median of {own['repeats']}" for own in speeds})
    if settings:
        print(f"\n{'; '.join(settings)}; the blocks in torch should reach {TARGET} of the promise")


if __name__ == "__main__":
    main()
