"""What several test folders share: composing a config, writing a corpus, and running the console command."""

import gzip
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import hydra
from omegaconf import DictConfig

from policyprune.config.composition import register
from policyprune.config.registry import conf_dir
from policyprune.config.schema import Config
from policyprune.config.validate import validate

WHO = ["The farmer", "A tired clerk", "Her oldest brother", "The night train", "Every sailor", "The small museum"]
DID = ["carried", "forgot", "repaired", "painted", "counted", "sold"]
WHAT = ["the wooden boat", "three letters", "a box of lamps", "the copper bell", "its own story", "the last map"]
WHERE = ["by the river", "behind the station", "in the old harbour", "at noon", "before the rain", "near the mill"]
LINE = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+ (DEBUG|INFO|WARNING|ERROR) policyprune[.\w]*: .*")  # of our own log
BAR = re.compile(r"[\w, .-]{34,}: +(\d+%\|.*\|.*\d+/\d+|\d+\w+) \[.*\]|")  # of our own progress, or nothing
SMALL_TASK = ["task.calibration.count=48", "task.calibration.length=16", "importance.sequences=16"]
SMALL_EVALUATION = [
    "evaluation.lengths=[32]",
    "evaluation.max_tokens=512",
    "evaluation.latency.repeats=1",
    "evaluation.latency.batch_sizes=[2]",
    "evaluation.latency.length=16",
]
SMALL_SEARCH = ["optimizer.steps=5", "optimizer.batch_size=4"]
POLICY_GRADIENT = ["importance=wanda_sp", "optimizer=policy_gradient", "tuning=none"]


def composed(*overrides: str) -> DictConfig:
    """What Hydra makes of conf/ and the overrides."""
    register()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose("config", list(overrides))


def validated(*overrides: str) -> Config:
    """The typed and checked config."""
    return validate(composed(*overrides))


def varied(grid: list[list[str]], seen: set[str]) -> list[list[str]]:
    """The first point, and for each value that was not seen yet the first point that has it and differs least."""
    chosen = [grid[0]]
    for point in sorted(grid, key=lambda point: len(set(point) - set(grid[0]))):
        if set(point) - seen - set(grid[0]):
            chosen.append(point)
            seen |= set(point)
    return chosen


def paragraphs(count: int, seed: int = 0) -> list[str]:
    """Varied paragraphs of a few English sentences; each has its number in it, so no two are equal."""
    chance = random.Random(seed)
    texts = []
    for number in range(count):
        sentences = [" ".join(chance.choice(words) for words in (WHO, DID, WHAT, WHERE)) + "." for _ in range(3)]
        texts.append(f"Story {seed}-{number}. {' '.join(sentences)}")
    return texts


def write_corpus(path: Path, texts: list[str], column: str = "text") -> Path:
    """Write documents as .txt, .jsonl or .json, with .gz compressed."""
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    rows = [{column: text} for text in texts]
    content = {
        ".txt": "\n\n".join(texts),
        ".jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        ".json": json.dumps(rows),
    }[suffix]
    with gzip.open(path, "wt", encoding="utf-8") if path.suffix == ".gz" else path.open("w", encoding="utf-8") as file:
        file.write(content)
    return path


def small_run(checkpoint: Path, corpus: Path, *overrides: str) -> list[str]:
    """Overrides of a run that takes a second: a local model, a local text, a short search, few tokens."""
    files = [f"model.source={checkpoint}", "model.name=tiny", "task=text", f"task.files=[{corpus}]"]
    return [*files, *SMALL_TASK, *overrides]


def command() -> str:
    """The installed console command."""
    path = shutil.which("policyprune", path=str(Path(sys.executable).parent))
    assert path is not None, "the package is not installed"
    return path


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's environment without Hydra's and W&B's switches, single-threaded and offline."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HYDRA_", "WANDB_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **changes}


def console(
    *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the console command in `cwd`."""
    variables = clean_environment(**(environment or {}))
    return subprocess.run(
        [command(), *arguments], cwd=cwd, env=variables, capture_output=True, text=True, timeout=300, check=False
    )


def foreign_lines(shown: str) -> list[str]:
    """What is on a screen besides the lines of our own log and our own progress bars."""
    lines = (line.rstrip() for line in re.split(r"[\r\n]+", shown))  # a bar clears what was longer with spaces
    return [line for line in lines if not (BAR.fullmatch(line) or LINE.fullmatch(line))]
