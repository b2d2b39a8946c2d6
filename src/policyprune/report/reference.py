"""Published values, from `sweeps/reference/<table>.csv`; a cell that nobody here knows for certain is empty there."""

import csv
from dataclasses import dataclass
from pathlib import Path

from policyprune.config.registry import sweeps_dir
from policyprune.errors import UsageError
from policyprune.report.lines import DENSE, Line
from policyprune.report.means import SETTING_KEYS, Column

COLUMNS = ("model", "task", "method", "tuning", "keep", "metric", "protocol", "value", "source")


@dataclass(frozen=True, kw_only=True)
class Published:
    """One cell of a published table, in the units of a record; `value` is None where it is not known."""

    line: Line
    keep: float
    metric: str
    protocol: dict[str, str]
    value: float | None
    source: str

    def is_of(self, line: Line, column: Column) -> bool:
        """Whether a measured cell is this one. The dense model is the same at any keep rate."""
        setting = {key: value for key, value in self.protocol.items() if key in SETTING_KEYS}
        return (
            (self.line, self.metric) == (line, column.metric)
            and (line.method == DENSE or self.keep == column.keep)
            and setting == {key: str(value) for key, value in column.setting}
        )


def reference_dir() -> Path:
    """The published values, beside the sweeps that reproduce them."""
    return sweeps_dir() / "reference"


def table_names() -> list[str]:
    """Tables with published values, named like their sweeps."""
    folder = reference_dir()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.csv"))


def read_reference(table: str) -> list[Published]:
    """The cells of a table, none where nothing was published. UsageError naming the line that cannot be read."""
    if table not in table_names():
        return []
    with (reference_dir() / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UsageError(f"reference {table}: the columns are {reader.fieldnames}, they must be {list(COLUMNS)}")
        return [_published(table, number, row) for number, row in enumerate(reader, start=2)]


def _published(table: str, number: int, row: dict[str, str]) -> Published:
    try:
        protocol = dict(part.split("=", 1) for part in row.pop("protocol").split(";") if part)
        line = Line(**{name: row.pop(name) for name in ("model", "task", "method", "tuning")})
        keep, value = float(row.pop("keep")), row.pop("value")
        return Published(line=line, keep=keep, protocol=protocol, value=float(value) if value else None, **row)
    except (ValueError, TypeError) as error:
        raise UsageError(f"reference {table}, line {number}: {error}") from error
