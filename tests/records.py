"""Records written by hand, for reports."""

import json
from pathlib import Path
from typing import Any

Measured = tuple[str, str, float | None, dict[str, Any]]  # subject, metric, value, protocol


def perplexities(pruned: float | None, dense: float = 10.0, **protocol: Any) -> list[Measured]:
    """A dense and a pruned perplexity at 128 tokens."""
    stated = {"length": 128, "windows": 4, "dtype": "float32", **protocol}
    return [("dense", "perplexity", dense, stated), ("pruned", "perplexity", pruned, stated)]


def write_run(
    root: Path,
    method: str | None,
    keep: float = 0.8,
    seed: int = 0,
    results: list[Measured] | None = None,
    *,
    status: str = "finished",
    error: str | None = None,
    model: str = "tiny",
    task: str = "text",
    tuning: str = "none",
    protocol: dict[str, Any] | None = None,
    losses: list[float] | None = None,
    config: dict[str, Any] | None = None,
    stderr: float | None = None,
    folder: str | None = None,
    **content: Any,
) -> Path:
    """Write a record below `root`, and a curve where there are losses; the run's folder, a new one each time."""
    name = folder or f"{model}-{task}-{method}-{keep}-{seed}-{tuning}-{len(list(root.glob('*')))}"
    place = root / name
    place.mkdir(parents=True)
    resolved = {
        "model": {"name": model},
        "task": {"name": task, "calibration": {"count": 64, "length": 16, "seed": seed}},
        "budget": {"name": "rate", "keep": keep},
        "importance": {"name": "wanda_sp", "sequences": 64},
        "optimizer": {"name": "policy_gradient", "masks": 2},
        "tuning": {"name": tuning},
        "seed": seed,
        **({"method": method} if method else {}),
    }
    for key, value in (config or {}).items():
        group, _, name = key.partition(".")
        if name:
            resolved[group][name] = value
        else:
            resolved[group] = value
    rows = perplexities(20.0) if results is None else results
    record = {
        "schema": 1,
        "status": status,
        "error": error,
        "started": f"2026-01-01T00:00:{len(list(root.glob('*'))):02d}",
        "config": resolved,
        "protocol": {"source": "a text", "bos": "none", "tokenizer": "abc", **(protocol or {})},
        "stages": [{"name": "search", "seconds": 3.0, "peak_memory_mb": 100.0}],
        "search": {"forwards": 8, "seconds": 4.0},
        "results": [
            {"subject": subject, "metric": metric, "value": value, "unit": "", "protocol": stated, "stderr": stderr}
            for subject, metric, value, stated in (rows if status == "finished" else [])
        ],
        **content,
    }
    (place / "record.json").write_text(json.dumps(record), encoding="utf-8")
    if losses is not None:
        lines = [{"step": step, "forwards": 2 * step, "loss": loss} for step, loss in enumerate(losses, start=1)]
        (place / "curve.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return place
