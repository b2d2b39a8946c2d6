"""Kwon et al. against PPOM, with and without tuning: mean and deviation over calibration seeds.

    python benchmarks/gpruner.py FOLDER keep=0.6,0.4,0.3 seeds=0,1,2 [key=value ...]

Every other key goes to the runs (model.source=..., task=..., ...), those of optimizer.* to PPOM's alone. Finished runs
are not repeated, so the command goes on where it was stopped, and a second call only prints the table.
"""

import statistics
import sys
from pathlib import Path

import hydra
from tabulate import tabulate

from policyprune.commands import run as pipeline
from policyprune.config.composition import register
from policyprune.config.registry import conf_dir
from policyprune.config.validate import run_label, validate
from policyprune.runs.record import Record

METHODS = {"kwon": "optimizer=kwon tuning=lsmr", "ppo": "optimizer=ppo tuning=cg2"}
SUBJECTS = {
    ("kwon", "pruned"): "kwon",
    ("kwon", "tuned"): "kwon + lsmr",
    ("ppo", "pruned"): "ppo",
    ("ppo", "tuned"): "ppo + cg2",
}


def one(folder: Path, overrides: list[str]) -> Record:
    """Run one point, or read its record."""
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = hydra.compose("config", overrides)
    return pipeline.run(validate(composed), folder / run_label(composed))


def seconds(record: Record, subject: str) -> float:
    """Seconds of Fisher, search and, for the tuned model, tuning."""
    stages = ["importance", "search", "tuning"] if subject == "tuned" else ["importance", "search"]
    return sum(stage["seconds"] for stage in record.stages if stage["name"] in stages)


def values(record: Record, subject: str) -> dict[str, float]:
    """The measured numbers of a subject; sizes and latency are those of the final model, whose mask is the same."""
    final = [row for row in record.results if row.subject in (subject, "tuned")]
    found = {
        f"{row.metric}{'@' + str(row.protocol['batch_size']) if 'batch_size' in row.protocol else ''}": float(
            row.value or 0
        )
        for row in sorted(final, key=lambda row: row.subject == subject)
    }
    return {**found, "seconds": seconds(record, subject)}


def cell(numbers: list[float]) -> str:
    """Mean and deviation."""
    mean = statistics.fmean(numbers)
    digits = 4 if abs(mean) < 10 else 1
    spread = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


def main() -> None:
    folder, *rest = sys.argv[1:]
    axes = dict(word.split("=", 1) for word in rest if word.startswith(("keep=", "seeds=")))
    common = [word for word in rest if not word.startswith(("keep=", "seeds="))]
    register()
    lines, columns = [], []
    for keep in axes.get("keep", "0.6").split(","):
        for method, overrides in METHODS.items():
            records = [
                one(
                    Path(folder).resolve(),
                    [
                        *overrides.split(),
                        "budget=flops",
                        f"budget.keep={keep}",
                        f"seed={seed}",
                        "evaluation.one_shot=[]",
                        *(word for word in common if method == "ppo" or not word.startswith("optimizer.")),
                    ],
                )
                for seed in axes.get("seeds", "0").split(",")
            ]
            for subject in ("pruned", "tuned"):
                rows = [values(record, subject) for record in records]
                columns = [name for name in rows[0] if name not in ("parameters", "block_parameters", "checkpoint")]
                lines.append(
                    [keep, SUBJECTS[method, subject], *(cell([row[name] for row in rows]) for name in columns)]
                )
    dense = {row.metric: row.value for row in records[0].results if row.subject == "dense"}
    table = tabulate(lines, headers=["keep", "method", *columns], tablefmt="github", disable_numparse=True)
    print(f"\ndense: {dense}\n\n{table}")


if __name__ == "__main__":
    main()
