"""What the package imports is what it says that it needs."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "policyprune"


def imported(path: Path) -> Iterator[str]:
    """Top-level names of the modules that a file imports, wherever it does so."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).partition(".")[0]


def plain(name: str) -> str:
    """A distribution's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_import_is_declared() -> None:
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *(own for extra in project["optional-dependencies"].values() for own in extra)]
    declared = {plain(re.split(r"[\s<>=!~\[;]", own, maxsplit=1)[0]) for own in needed}
    owners = packages_distributions()
    names = {name for path in SOURCE.rglob("*.py") for name in imported(path)} - {
        "policyprune",
        *sys.stdlib_module_names,
    }
    undeclared = {name: owners.get(name) for name in names if not {plain(o) for o in owners.get(name, [])} & declared}
    assert undeclared == {}


def test_reports_need_no_torch_and_runs_no_pandas() -> None:
    modules = [path.relative_to(SOURCE.parent).with_suffix("") for path in (SOURCE / "report").rglob("*.py")]
    names = [".".join(path.parts).removesuffix(".__init__") for path in modules]
    script = "\n".join([*(f"import {name}" for name in names), "import sys", "print('torch' in sys.modules)"])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert [path.name for path in (SOURCE / "runs").rglob("*.py") if "pandas" in imported(path)] == []
