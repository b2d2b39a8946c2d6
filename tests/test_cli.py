"""The console command: help, printing the config, and refusing, fast and without torch."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import clean_environment, command, console
from policyprune.config.options import groups, options

HEAVY = ("torch", "transformers", "datasets", "wandb", "lm_eval")
LIGHT_CALLS = [["--help"], ["-h"], ["run", "--help"], ["doctor", "--help"], ["--cfg", "job"]]
SWEEP_CALLS = [["sweep"], ["sweep", "smoke", "method=flap", "--dry-run"]]


def seconds(arguments: list[str], folder: Path) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    subprocess.run([command(), *arguments], cwd=folder, env=clean_environment(), capture_output=True, check=True)
    return time.perf_counter() - began


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_light_calls_take_less_than_a_second(arguments: list[str], tmp_path: Path) -> None:
    assert min(seconds(arguments, tmp_path) for _ in range(3)) < 1.0


@pytest.mark.parametrize("arguments", [*LIGHT_CALLS, *SWEEP_CALLS, ["budget.kep=1"]])
def test_light_calls_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    script = (
        "import json, sys\n"
        f"sys.argv = ['policyprune', *{arguments!r}]\n"
        "from policyprune.cli import main\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    status = ended.code\n"
        "print(json.dumps([status, sorted(sys.modules)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=clean_environment(), capture_output=True, text=True
    )
    status, modules = json.loads(done.stdout.splitlines()[-1])
    assert status == (2 if arguments == ["budget.kep=1"] else 0)
    assert "policyprune.cli" in modules
    assert not set(HEAVY) & set(modules)


def test_help_lists_every_group_and_option(tmp_path: Path) -> None:
    done = console("--help", cwd=tmp_path)
    assert done.returncode == 0
    listed = done.stdout.partition("groups and their options:\n")[2].partition("\n\n")[0]
    rows: dict[str, list[str]] = {}
    for line in listed.splitlines():
        words = line.replace(",", " ").split()
        if not line.startswith("   "):
            group = words.pop(0)
        rows.setdefault(group, []).extend(words)
    assert rows == {group: options(group) for group in groups()}


def test_cfg_job_prints_the_composed_config_and_writes_nothing(tmp_path: Path) -> None:
    done = console("--cfg", "job", "budget.keep=0.65", cwd=tmp_path)
    assert done.returncode == 0
    assert "keep: 0.65" in done.stdout
    assert "smollm2_135m" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["budget.keep=2"], "budget.keep: 2.0 is out of range, it must be above 0 and at most 1"),
        (["run", "optimizer=foo"], f"optimizer: 'foo' is not one of {', '.join(options('optimizer'))}"),
        (["+foo=1"], "foo: unknown key, the choices are "),
        (["sweeep"], "'sweeep' is not a verb or key=value, the verbs are run"),
    ],
)
def test_refusals_of_the_real_command(arguments: list[str], line: str, tmp_path: Path) -> None:
    done = console(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"policyprune: {line}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_python_m_is_the_same_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "policyprune", "--help"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert done.stdout == console("--help", cwd=tmp_path).stdout


def test_the_current_directory_is_not_searched_for_options(tmp_path: Path) -> None:
    (tmp_path / "conf" / "optimizer").mkdir(parents=True)
    (tmp_path / "conf" / "optimizer" / "mine.yaml").write_text("name: one_shot\n")
    done = console("optimizer=mine", cwd=tmp_path)
    assert done.returncode == 2
    assert "optimizer: 'mine' is not one of" in done.stderr
