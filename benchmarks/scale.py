"""What pruning costs at the size of published models: forwards, steps of searches, statistics, tuning, and memory.

    python benchmarks/scale.py [--models llama2_7b llama2_13b llama3_8b] [--device cuda] [--out outputs/scale]
        [--sequences 128] [--length 128] [--limit 120]

Models have random weights, made on the device in bfloat16, and random calibration sequences. A part takes three minutes
at most; its result is a whole JSON file, and a part that was measured with the same settings on the same card is not
measured again, so the command goes on where it was stopped. In the end a table and `summary.json`, with two sums: the
paper's 15,000 steps, and one pruning with importance=obs, optimizer=levels and tuning=reconstruct. Without a GPU only
the shape `tiny` is measured, which says nothing but that the command works. A part that fails, as for want of memory,
is named in the table, and the others go on; the next start tries it again.
"""

import argparse
import gc
import json
import platform
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scale_models import SHAPES, Result, Subject
from scale_parts import forward, level, policy_gradient
from scale_statistics import second_order, tuning
from tabulate import tabulate

from policyprune.provenance import git_state, installed_versions
from policyprune.runs.stages import measured
from policyprune.storage.files import write_whole

PARTS: dict[str, Callable[[Subject], Result]] = {
    "forward": forward,
    "policy_gradient": policy_gradient,
    "second_order": second_order,
    "level": level,
    "tuning": tuning,  # last: it makes models of its own
}
PAPER_STEPS = 15_000
PUBLISHED = {"llama2_13b": {"hours": 2.7, "memory_gb": 35, "card": "one A100"}}  # Gao et al., ACL 2025
MEASUREMENTS = 150  # of a level search that is short


def card(device: torch.device) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def measure(name: str, folder: Path, settings: Result) -> tuple[dict[str, Result], dict[str, str]]:
    """The parts of a model, those that are there already from their files; and why others failed."""
    subject = Subject(
        name=name,
        device=torch.device(settings["device"]),
        sequences=settings["sequences"],
        length=settings["length"],
        limit=settings["limit"],
    )
    found: dict[str, Result] = {}
    failed: dict[str, str] = {}
    for part, function in PARTS.items():
        file = folder / name / f"{part}.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if known.get("settings") == settings:
            print(f"{name}, {part}: is there", flush=True)
            found[part] = known
            continue
        print(f"{name}, {part}", flush=True)
        stages: list[Result] = []
        gc.collect()  # what the part before has left
        try:
            if part != "tuning":
                assert subject.prunable  # made outside of the measured seconds
            with measured(part, stages):
                result = function(subject)
        except RuntimeError as error:  # most likely memory: the other parts are worth having
            traceback.print_exc()
            failed[part] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            continue
        finally:
            if part in failed or part == "tuning":
                subject.release()
        found[part] = {
            "settings": settings,
            "seconds": stages[0]["seconds"],
            "peak_memory_mb": subject.peak(stages[0]),
            "result": result,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(found[part], indent=2).encode())
    subject.release()
    return found, failed


def sums(name: str, parts: dict[str, Result]) -> Result:
    """What the parts of a model make together, where they are there."""
    results = {part: own["result"] for part, own in parts.items()}
    total: Result = {}
    if "policy_gradient" in results:
        total["paper"] = {
            "steps": PAPER_STEPS,
            "published": PUBLISHED.get(name),
            "memory_gb": parts["policy_gradient"]["peak_memory_mb"] * 2**20 / 1e9,
            "hours": {per: PAPER_STEPS * own["step_seconds"] / 3600 for per, own in results["policy_gradient"].items()},
        }
    if {"second_order", "level", "tuning"} <= set(results):
        statistics, step = results["second_order"]["all_layers"], results["level"]["step_seconds"]
        before = statistics["statistics_seconds"] + statistics["elimination_seconds"]
        after = results["tuning"]["all_layers"]["seconds"]
        peaks = (
            parts["second_order"]["peak_memory_mb"] + results["second_order"]["not_held_mb"],
            parts["level"]["peak_memory_mb"] + results["level"]["not_held_mb"],
            results["tuning"]["all_layers"]["peak_mb"],  # statistics are gone by then
        )
        total["ours_forward"] = {
            "statistics_seconds": before,
            "measurement_seconds": step,
            "tuning_seconds": after,
            "memory_gb": max(peaks) * 2**20 / 1e9,
            "minutes": {
                str(count): (before + count * step + after) / 60
                for count in (MEASUREMENTS, results["level"]["measurements_at_most"])
            },
        }
    return total


def lines(name: str, own: Result) -> list[list[str]]:
    """Rows of the table: model, what, value, memory."""
    parts, rows = own["parts"], list[list[str]]()

    def row(what: str, value: str, peak_mb: float | None = None) -> None:
        rows.append([name, what, value, "" if peak_mb is None else f"{peak_mb * 2**20 / 1e9:.1f} GB"])

    if "forward" in parts:
        result, peak = parts["forward"]["result"], parts["forward"]["peak_memory_mb"]
        for kind, seconds in result["seconds"].items():
            ratio = result["relative_to_dense"][kind]
            row(f"forward, {kind}", f"{1e3 * seconds:.1f} ms, {ratio:.2f} of dense", peak)
    if "policy_gradient" in parts:
        for per, step in parts["policy_gradient"]["result"].items():
            outside = f"{1e3 * step['outside_seconds']:.1f} ms outside of forwards"
            row(
                f"policy gradient step, {per}",
                f"{1e3 * step['step_seconds']:.1f} ms, {outside}",
                parts["policy_gradient"]["peak_memory_mb"],
            )
    if "second_order" in parts:
        result = parts["second_order"]["result"]
        layers = f"{result['measured_layers']} of {result['layers']} layers measured"
        seconds = result["all_layers"]
        peak = parts["second_order"]["peak_memory_mb"] + result["not_held_mb"]
        row("statistics", f"{seconds['statistics_seconds']:.1f} s, {layers}", peak)
        row("eliminations", f"{seconds['elimination_seconds']:.1f} s", peak)
        row("solves of a mask", f"{seconds['solve_seconds']:.2f} s, then {seconds['solve_again_seconds']:.2f} s", peak)
    if "level" in parts:
        step = parts["level"]["result"]
        outside, solving = 1e3 * step["outside_seconds"], 1e3 * step["solve_seconds"]
        row(
            "level measurement",
            f"{1e3 * step['step_seconds']:.1f} ms, {outside:.1f} ms outside of forwards ({solving:.1f} ms solving)",
            parts["level"]["peak_memory_mb"] + step["not_held_mb"],
        )
    if "tuning" in parts:
        estimate = parts["tuning"]["result"]["all_layers"]
        row("tuning", f"{estimate['seconds']:.1f} s, estimated from a few layers", estimate["peak_mb"])
    if "paper" in own:
        for per, hours in own["paper"]["hours"].items():
            row(f"the paper's {PAPER_STEPS:,} steps, {per}", f"{hours:.2f} h", own["paper"]["memory_gb"] * 1e9 / 2**20)
        if published := own["paper"]["published"]:
            row(f"the same, published, {published['card']}", f"{published['hours']} h, {published['memory_gb']} GB")
    if "ours_forward" in own:
        for count, minutes in own["ours_forward"]["minutes"].items():
            what = f"a pruning with {count} level measurements"
            row(what, f"{minutes:.1f} min", own["ours_forward"]["memory_gb"] * 1e9 / 2**20)
    rows += [[name, part, f"failed: {why}", ""] for part, why in own["failed"].items()]
    return rows


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = [name for name in SHAPES if name != "tiny"] if on_gpu else ["tiny"]
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=default)
    parser.add_argument("--device", default="cuda:0" if on_gpu else "cpu")
    parser.add_argument("--out", type=Path, default=Path("outputs/scale"))
    parser.add_argument("--sequences", type=int, default=128, help="for calibration")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--limit", type=float, default=120, help="seconds of statistics; what is left is estimated")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        device = torch.device("cuda", torch.cuda.current_device())
    settings = {
        "device": str(device),
        "card": card(device),
        "sequences": arguments.sequences,
        "length": arguments.length,
        "limit": arguments.limit,
    }
    models: dict[str, Any] = {}
    for name in arguments.models:
        parts, failed = measure(name, arguments.out, settings)
        models[name] = {"parts": parts, "failed": failed, **sums(name, parts)}
    summary = {
        "settings": settings,
        "versions": installed_versions(["policyprune", "torch", "transformers"]) | {"cuda": torch.version.cuda},
        "git": git_state(),
        "models": models,
    }
    write_whole(arguments.out / "summary.json", json.dumps(summary, indent=2).encode())
    rows = [row for name, own in models.items() for row in lines(name, own)]
    print(f"\n{card(device)}, {arguments.sequences} sequences of {arguments.length} tokens")
    print(tabulate(rows, ["model", "", "", "peak memory"], disable_numparse=True))
    if any(own["failed"] for own in models.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
