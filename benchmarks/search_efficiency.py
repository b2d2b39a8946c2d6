"""The search as the paper's authors released it, at several learning rates, against ours: quality per forward pass.

    python benchmarks/search_efficiency.py FOLDER [keep=0.8,0.6] [seeds=0,1,2] [rates=0.01,0.03,0.1] [passes=400]
        [ours=40,120,400] [every=40] [ours.KEY=VALUE ...] [key=value ...]

A pass is a forward of 8 sequences of 128 tokens, under one mask or under one each; a backward counts as two more, and
those of our metric (first-order Taylor) count as well. All arms have the same model, calibration data and budget;
`passes` is what the released algorithm gets, `ours` lists lengths of our own search, whose schedule is then that short.
Every `every` passes the mask that the search would end with is measured on held-out text, outside of the counted
seconds. `ours.KEY` sets optimizer.KEY of our arm, other keys go to every run. Only ours is tuned.

A finished run is a whole JSON-lines file in FOLDER and is not repeated, so the command goes on where it was stopped.
In the end a table, `table.md` and `curves.svg` (needs matplotlib).
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import torch
from tabulate import tabulate
from torch import Tensor

from policyprune.config.composition import register
from policyprune.config.registry import conf_dir
from policyprune.config.schema import Config
from policyprune.config.validate import fingerprint, validate
from policyprune.evaluation.perplexity import perplexity
from policyprune.models.device import in_search_dtype
from policyprune.models.loading import load
from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.budget.selection import select
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.prunable import PrunableModel
from policyprune.search.prune import Pruning, find_mask, score
from policyprune.storage.files import write_whole
from policyprune.surgery.shrink import shrink
from policyprune.surgery.sliced import Sliced
from policyprune.tasks import build
from policyprune.tuning.fit import fit

COMMON = [
    "task.calibration.length=128",
    "optimizer.batch_size=8",
    "evaluation.max_tokens=8192",
    "tuning=cg2",
    "tuning.sequences=64",
]
OURS = ["importance=taylor", "optimizer=straight_through"]
BACKWARD = 2  # forwards: with fixed weights a backward has the products of one, and takes the time of about two here
FEW, MANY = 32, 128  # sequences of the metric in a search of under, and of at least 100 passes
SETTINGS = {
    "keep": "0.8,0.6",
    "seeds": "0,1,2",
    "rates": "0.01,0.03,0.1",
    "passes": "400",
    "ours": "40,120,400",
    "every": "40",
}


@dataclass(frozen=True)
class Arm:
    """A search: its name, whose it is, its passes, and its overrides without the number of steps."""

    name: str
    released: bool
    passes: int
    overrides: list[str]

    @property
    def sequences(self) -> int:
        """Calibration sequences of the metric."""
        return MANY if self.released or self.passes >= 100 else FEW

    @property
    def before(self) -> int:
        """Passes of our metric; that of the released algorithm looks at activations alone and is not counted."""
        return 0 if self.released else self.sequences // 8 * (1 + BACKWARD)


def arms(settings: dict[str, str], own: list[str]) -> Iterator[Arm]:
    """Every search that is compared."""
    for rate in (word for word in settings["rates"].split(",") if word):
        overrides = ["importance=wanda_sp", "optimizer=policy_gradient_released", f"optimizer.learning_rate={rate}"]
        yield Arm(f"released, rate {rate}", True, int(settings["passes"]), overrides)
    for passes in (int(word) for word in settings["ours"].split(",") if word):
        yield Arm(f"ours, {passes} passes", False, passes, [*OURS, *own])


def configured(arm: Arm, keep: str, seed: str, common: list[str]) -> Config:
    """The config of one run; its steps follow from the arm's passes."""
    metric = f"importance.sequences={arm.sequences}"
    words = [*arm.overrides, metric, f"budget.keep={keep}", f"seed={seed}", *COMMON, *common]
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        steps = (arm.passes - arm.before) // per_step(validate(hydra.compose("config", words)))
        return validate(hydra.compose("config", [*words, f"optimizer.steps={steps}"]))


def per_step(config: Config) -> int:
    """Passes of a step."""
    return getattr(config.optimizer, "masks", 1 + BACKWARD)


class Watch:
    """The `State` of a search that is measured as it goes; the clock stands still meanwhile."""

    def __init__(
        self, every: int, before: int, per_step: int, measure: Callable[[Tensor], float], began: float
    ) -> None:
        self._every, self._passes, self._per_step, self._measure = every, before, per_step, measure
        self._aside, self._began = 0.0, began
        self.rows: list[dict[str, float]] = []

    @property
    def seconds(self) -> float:
        """Seconds of metric and search alone."""
        return time.perf_counter() - self._began - self._aside

    def load(self) -> None:
        """Every run begins anew."""

    def save(self, make: Callable[[], dict[str, Any]]) -> None:
        """Called after each step."""
        self._passes += self._per_step
        if self._passes // self._every > (self._passes - self._per_step) // self._every:
            seconds, began = self.seconds, time.perf_counter()
            self.rows.append({"passes": self._passes, "seconds": seconds, "perplexity": self._measure(make()["s"])})
            self._aside += time.perf_counter() - began


@torch.no_grad()
def one(arm: Arm, config: Config, every: int) -> list[dict[str, Any]]:
    """Run one search: a row per measurement, and a last one with the final perplexities."""
    torch.manual_seed(config.seed)
    model, tokenizer = load(config.model, config.task)
    prunable = PrunableModel.of(model, config.granularity.units, config.granularity.spared)
    space, task = prunable.space, build(config.task, tokenizer, model)
    windows = task.windows(128, config.evaluation.max_tokens)
    pruning = Pruning(
        prunable=prunable,
        quick=prunable.on(in_search_dtype(model, config.model.search_dtype)),
        data=task,
        budget=make_budget(config.budget, prunable.adapter, space),
        importance=config.importance,
        seed=config.seed,
    )
    sliced = Sliced(pruning.quick)
    began = time.perf_counter()
    scores = score(pruning)

    def measure(mask: Tensor) -> float:
        sliced.set(space.expand(mask))
        return perplexity(sliced.model, windows, config.evaluation.batch_tokens)

    budget = pruning.budget.to(model.device)
    watch = Watch(every, arm.before, per_step(config), lambda s: measure(select(space.joint(s), budget)), began)
    found = find_mask(pruning, scores, config.optimizer, state=watch)
    passes = arm.before + found.forwards + BACKWARD * found.backwards
    last: dict[str, Any] = {"passes": passes, "seconds": watch.seconds}
    mask = space.expand(found.mask)

    def quality(mask: Tensor, compensation: Compensation | None = None) -> float:
        smaller = shrink(prunable, mask, compensation)
        return perplexity(smaller, windows, config.evaluation.batch_tokens)

    last["perplexity"] = quality(mask)
    if not arm.released:
        fitted = fit(prunable, mask, task, config.tuning, pruning.quick)
        last["tuned"] = quality(fitted.mask, fitted.compensation)
    return [*watch.rows, last]


def kept(path: Path, arm: Arm, config: Config, every: int) -> list[dict[str, Any]]:
    """The rows of a run, from its file where it is finished."""
    head = {"config": fingerprint(config), "every": every}
    if path.exists():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        if lines[0] != head:
            sys.exit(f"{path} holds a run of other settings, name another folder")
        return lines[1:]
    rows = one(arm, config, every)
    write_whole(path, "".join(json.dumps(row) + "\n" for row in [head, *rows]).encode())
    print(f"{path.stem}: {rows[-1]}", flush=True)
    return rows


Runs = dict[str, list[list[dict[str, Any]]]]  # by arm, for each seed its rows


def table(keep: str, compared: list[Arm], runs: Runs) -> str:
    """Final perplexities of all arms, and when ours comes to where the best released one ends."""

    def ends(arm: Arm, key: str) -> list[float]:
        return [rows[-1][key] for rows in runs[arm.name] if key in rows[-1]]

    if not any(arm.released for arm in compared):
        return f"keep {keep}: nothing to compare with, no `rates`"
    best = min((arm for arm in compared if arm.released), key=lambda arm: statistics.fmean(ends(arm, "perplexity")))
    lines, goal = [], statistics.fmean(ends(best, "perplexity"))
    for arm in compared:
        reached = []
        for rows, its_goal in zip(runs[arm.name], runs[best.name], strict=True):
            reached.append(next((row for row in rows if row["perplexity"] <= its_goal[-1]["perplexity"]), None))
        whole = [row for row in reached if row is not None]
        everywhere = len(whole) == len(reached)
        lower = [100 * (statistics.fmean(own) / goal - 1) for key in ("perplexity", "tuned") if (own := ends(arm, key))]
        lines.append(
            [
                keep,
                arm.name + (" (best)" if arm is best else ""),
                *(cell(ends(arm, key)) for key in ("passes", "seconds", "perplexity", "tuned")),
                ", ".join(f"{own:+.0f} %" for own in lower),
                *(cell([row[key] for row in whole]) if everywhere else "never" for key in ("passes", "seconds")),
            ]
        )
    heads = ["keep", "search", "passes", "seconds", "perplexity", "tuned", "against the best released one"]
    return tabulate(lines, [*heads, "passes to there", "seconds to there"], tablefmt="github", disable_numparse=True)


def cell(numbers: list[float]) -> str:
    """Mean and deviation; empty for no numbers."""
    if not numbers:
        return ""
    spread = f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.1f}{spread}"


def plot(path: Path, runs: dict[str, Runs]) -> None:
    """Held-out perplexity against passes and against seconds, a row per keep rate."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("no plot: pip install matplotlib")
        return
    figure, axes = pyplot.subplots(len(runs), 2, figsize=(11, 4 * len(runs)), squeeze=False)
    for row, (keep, by_arm) in zip(axes, runs.items(), strict=True):
        for axis, key in zip(row, ("passes", "seconds"), strict=True):
            for number, (name, seeds) in enumerate(by_arm.items()):
                for index, rows in enumerate(seeds):
                    x, y = [point[key] for point in rows], [point["perplexity"] for point in rows]
                    label = name if index == 0 else None
                    style = {"linestyle": "--" if "released" in name else "-", "marker": "o", "markersize": 3}
                    axis.plot(x, y, color=f"C{number}", label=label, **style)
            axis.set(xlabel=key, ylabel="held-out perplexity", title=f"keep {keep}", yscale="log", xlim=(0, None))
            for which in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
                which("{x:g}")
        row[0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    folder, *rest = sys.argv[1:]
    words = dict(word.split("=", 1) for word in rest)
    settings = {key: words.pop(key, default) for key, default in SETTINGS.items()}
    own = [f"optimizer.{key.removeprefix('ours.')}={words.pop(key)}" for key in list(words) if key.startswith("ours.")]
    common = [f"{key}={value}" for key, value in words.items()]
    root, every = Path(folder), int(settings["every"])
    root.mkdir(parents=True, exist_ok=True)
    register()
    compared, found, texts = list(arms(settings, own)), {}, []
    for keep in settings["keep"].split(","):
        runs: Runs = {arm.name: [] for arm in compared}
        for seed in settings["seeds"].split(","):
            for arm in compared:
                name = f"keep {keep}, seed {seed}, {arm.name}".replace(", ", "_").replace(" ", "-")
                config = configured(arm, keep, seed, common)
                runs[arm.name].append(kept(root / f"{name}.jsonl", arm, config, every))
        found[keep] = runs
        texts.append(table(keep, compared, runs))
    print("\n" + "\n".join(texts))
    write_whole(root / "table.md", "\n".join(texts).encode())
    plot(root / "curves.svg", found)


if __name__ == "__main__":
    main()
