"""The house keeps its shape: rooms import downwards, files and signatures stay short (docs/structure.md)."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "policyprune"
ROOMS = (  # from the ground up: a room imports only what stands before it
    "errors",
    "processes",
    "progress",
    "provenance",
    "storage",
    "config",
    "models",
    "tasks",
    "pruning",
    "surgery",
    "tuning",
    "recovery",
    "evaluation",
    "runs",
    "tracking",
    "search",
    "report",
    "api",
    "api_recovery",
    "commands",
    "cli",
    "__main__",
)
LONGEST_FILE, MOST_PARAMETERS, MOST_POSITIONAL_FIELDS = 300, 6, 3

FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in FILES.items()}


def imported(module: str) -> Iterator[str]:
    """The modules of the package that a module imports, also inside functions."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "policyprune":
            base = node.module.removeprefix("policyprune").lstrip(".")
            for name in node.names:
                inside = f"{base}.{name.name}".lstrip(".")
                yield inside if inside in FILES else base


@pytest.mark.parametrize("module", [module for module in FILES if module])
def test_a_room_imports_only_from_rooms_below_it(module: str) -> None:
    floor = ROOMS.index(module.partition(".")[0])
    rooms = {other.partition(".")[0] for other in imported(module) if other}
    above = sorted(room for room in rooms if ROOMS.index(room) > floor)
    assert not above, f"{module} imports {', '.join(above)}, which stand above it"


def test_no_file_imports_itself_by_way_of_others() -> None:
    graph = {module: set(imported(module)) - {module, ""} for module in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("module", FILES)
def test_files_and_signatures_are_short(module: str) -> None:
    lines = len(FILES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{lines} lines"
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            named = [argument.arg for argument in every if argument.arg not in ("self", "cls")]
            assert len(named) <= MOST_PARAMETERS, f"{node.name} has {len(named)} parameters"
