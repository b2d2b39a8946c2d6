"""The console command: help, printing the config, and refusing, fast and without torch."""

import errno
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_lines import TABLE, replaced
from harness import clean_environment, command, console
from policyprune.config.registry import options
from policyprune.errors import describe, on_one_line

HEAVY = ("torch", "transformers", "datasets", "wandb", "lm_eval")
PASSED_ON = [row for row in TABLE if "\0" not in "".join(row[0])]  # no process can be given a NUL
LIGHT_CALLS = [["--help"], ["-h"], ["run", "--help"], ["doctor", "--help"], ["--cfg", "job"]]
REFUSED_CALLS = [
    ["budget.kep=1"],
    ["evaluate", "nowhere"],
    ["export", "a/b"],
    ["apply", "nowhere"],
    ["doctor", "seed=-1"],
]
SWEEP_CALLS = [["sweep"], ["sweep", "smoke", "method=flap", "--dry-run"]]


def seconds(arguments: list[str], folder: Path) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    subprocess.run([command(), *arguments], cwd=folder, env=clean_environment(), capture_output=True, check=True)
    return time.perf_counter() - began


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_light_calls_take_less_than_a_second(arguments: list[str], tmp_path: Path) -> None:
    assert min(seconds(arguments, tmp_path) for _ in range(3)) < 1.0


@pytest.mark.parametrize("arguments", [*LIGHT_CALLS, *SWEEP_CALLS, *REFUSED_CALLS])
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
    assert status == (2 if arguments in REFUSED_CALLS else 0)
    assert "policyprune.cli" in modules
    assert not set(HEAVY) & set(modules)


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


@pytest.mark.parametrize(("arguments", "words"), PASSED_ON[::5])
def test_the_installed_command(arguments: list[str], words: str, tmp_path: Path) -> None:
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    began = time.monotonic()
    done = console(*replaced(arguments, tmp_path), cwd=cwd)
    assert time.monotonic() - began < 10
    assert done.returncode == 2
    assert done.stderr.startswith("policyprune: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not list(cwd.iterdir())


def test_enough_of_the_table_goes_through_the_installed_command() -> None:
    assert len(PASSED_ON[::5]) >= 40


def test_an_error_is_described_in_one_line() -> None:
    assert describe(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"
    assert describe(ValueError("a\n b")) == "ValueError: a b"
    assert on_one_line("a\r\n\tb\x1b[31m \u2028\udcff ä") == r"a b\x1b[31m \udcff ä"
