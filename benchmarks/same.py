"""Whether a refactoring changes no result: a fixed set of small runs by two revisions, compared to the last bit.

    python benchmarks/same.py [--quick] REV REV

`.` or `worktree` is the working tree as it is. The runs (`same_cases.py`) go through the command line of each revision.
Compared: every tensor of the masks, plans, search curves, the numbers of the records without times and memory, weights
and configs of checkpoints, and what doctor prints. What a commit gave is kept in outputs/same/<commit>/ and not run
again. Exit code 1 if anything differs.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from same_cases import CASES, QUICK, make_inputs
from same_content import by_part, content, differences, read, renamed, sha256
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
HASH = re.compile(r"-[0-9a-f]{8}(?=/|$)")  # of the config, in the name of a run's folder
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "scipy", "scikit-learn", "lm_eval")
THREADS = os.environ.get("OMP_NUM_THREADS", "2")
FAILED = "failed"  # in the place of runs

Case = dict[str, dict[str, Any]]  # run -> part -> content


def main() -> int:
    """Run what is not there yet, compare, print a table and the first differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revisions", nargs=2, metavar="REV", help="of git; . or worktree is the working tree")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as any exit, it removes what is temporary
    names = [name for name in CASES if not options.quick or name in QUICK]
    with tempfile.TemporaryDirectory(prefix="same-") as folder:
        work = Path(folder).resolve()
        make_inputs(work / "inputs")
        first, second = (renamed(given(rev, names, work, n)) for n, rev in enumerate(options.revisions))
    rows, told = [], []
    for name in names:
        cases = first[name], second[name]
        failed = [own for case in cases for own in case.get(FAILED, {}).values()]
        found = {} if failed else by_part(differences(*cases))
        parts = dict.fromkeys(part for run in cases[1].values() for part in run)
        verdict = "FAILED" if failed else "DIFFERENT" if found else "same"
        rows.append([name, len(cases[1]), "" if failed else ", ".join(parts), verdict])
        told += [f"{name} failed: {own}" for own in failed]
        told += [f"{name} {part}, {len(lines)} differences: {lines[0]}" for part, lines in found.items()]
    print(tabulate(rows, ["case", "folders", "compared", " and ".join(options.revisions)]))
    print("".join(f"\n{line}" for line in told))
    return 1 if told else 0


def given(revision: str, names: list[str], work: Path, number: int) -> dict[str, Case]:
    """What each case gives; a commit's from outputs/same/ where it is there."""
    here = revision in (".", "worktree")
    commit = "" if here else git("rev-parse", "--verify", f"{revision}^{{commit}}").strip()
    kept = {name: ROOT / "outputs" / "same" / commit / f"{name}-{fingerprint(name, work)}.json" for name in names}
    found = {name: read(file) for name, file in kept.items() if not here and file.is_file()}
    missing = [name for name in names if name not in found]
    with checked_out(commit, work / f"tree{number}") if missing else contextlib.nullcontext(work) as tree:
        for name in missing:
            began = time.perf_counter()
            case, finished = perform(name, tree, work / str(number) / name)
            seconds = f"{time.perf_counter() - began:.0f} s{'' if finished else ', FAILED'}"
            print(f"{revision}: {name} {seconds}", file=sys.stderr, flush=True)
            found[name] = case
            if finished and not here:
                kept[name].parent.mkdir(parents=True, exist_ok=True)
                new = kept[name].with_suffix(".new")
                new.write_text(json.dumps(case), encoding="utf-8")
                new.replace(kept[name])
    return found


def fingerprint(name: str, work: Path) -> str:
    """Hash of all but the revision that the numbers of a case hang on."""
    inputs = [sha256(path.read_bytes()) for path in sorted(work.glob("inputs/**/*")) if path.is_file()]
    try:  # what kind of processor, which decides how sums are ordered
        lines = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines())
        processor = sorted(line for line in lines if line.startswith(("model name", "flags", "Features")))
    except OSError:
        processor = [platform.processor()]
    commands = [words.split() for words in CASES[name]]
    versions = [sys.version, *(version(package) for package in PACKAGES)]
    return sha256(json.dumps([commands, inputs, processor, THREADS, versions]).encode())[:12]


@contextlib.contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """A folder with the files of a commit, or with those of the working tree now, if they change while it runs."""
    if commit:
        git("worktree", "add", "--detach", str(folder), commit)
        try:
            yield folder
        finally:
            git("worktree", "remove", "--force", str(folder))
        return
    for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    yield folder


def perform(name: str, tree: Path, folder: Path) -> tuple[Case, bool]:
    """Run a case by the code in `tree`, and whether all of it succeeded. `folder` is gone afterwards."""
    folder.mkdir(parents=True)
    own = {key: value for key, value in os.environ.items() if not key.startswith(("HYDRA_", "WANDB_", "POLICYPRUNE_"))}
    caches = {"POLICYPRUNE_CACHE": "cache", "HF_DATASETS_CACHE": "datasets", "HF_MODULES_CACHE": "modules"}
    own |= {variable: str(folder.parent / cache) for variable, cache in caches.items()}  # of the revision alone
    own |= {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": THREADS, "HF_HUB_OFFLINE": "1"}
    own.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait leave the cores to whoever else is there
    own |= {"WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": ""}  # GPUs do not repeat their sums in the same order
    case: Case = {}
    for words in CASES[name]:
        command = [sys.executable, "-m", "policyprune", *words.split()]
        done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, check=False)
        if done.returncode:
            return {FAILED: {tree.name: f"policyprune {' '.join(words.split())}\n{done.stderr[-1000:]}"}}, False
        if words.startswith("doctor"):
            case["doctor"] = {"printed": re.sub(r"\b[\d.]+ (s|min)\b", "N s", done.stdout)}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        run = HASH.sub("", path.parent.relative_to(folder).as_posix())
        part = content(path)
        if part:
            case.setdefault(run.removesuffix("/checkpoint"), {}).update(part)
    shutil.rmtree(folder)
    return case, True


def git(*arguments: str) -> str:
    """What a git command prints."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
