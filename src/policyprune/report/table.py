"""A table as words, before it is Markdown, LaTeX or HTML."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace

Groups = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Cell:
    """A value with its spread and a remark, as they are shown; `state` says in a word why there is no value."""

    value: str = ""
    _: KW_ONLY
    spread: str = ""
    remark: str = ""
    state: str = ""
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """The row's names, the footnotes that its names carry, and its cells."""

    names: tuple[str, ...]
    cells: tuple[Cell, ...]
    marks: str = ""
    rule: bool = False  # a line is drawn below


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns stand in groups: (title of the group, titles of its columns); those named in `words` hold text."""

    title: str
    stub: tuple[str, ...]  # titles of the rows' names
    groups: Groups
    rows: tuple[Row, ...]
    caption: str = ""
    notes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """One title per column, that of its group included."""
        return [
            f"{group}, {name}" if group and name else group or name for group, names in self.groups for name in names
        ]


def without_empty_columns(table: Table) -> Table:
    """The same table without the columns in which no row has anything."""
    names = [number for number in range(len(table.stub)) if any(row.names[number] for row in table.rows)]
    cells = [number for number in range(len(table.columns)) if any(row.cells[number] != Cell() for row in table.rows)]
    groups: list[tuple[str, tuple[str, ...]]] = []
    first = 0
    for group, titles in table.groups:
        left = tuple(title for number, title in enumerate(titles, start=first) if number in cells)
        groups += [(group, left)] if left else []
        first += len(titles)
    rows = tuple(
        replace(row, names=tuple(row.names[n] for n in names), cells=tuple(row.cells[n] for n in cells))
        for row in table.rows
    )
    return replace(table, stub=tuple(table.stub[n] for n in names), groups=tuple(groups), rows=rows)


def one_line(text: str) -> str:
    """Text of others, as it may be shown: on one line, without letters that steer a terminal or turn lines around."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())


@dataclass
class Footnotes:
    """Letters for remarks, the same letter for the same remark."""

    remarks: list[str] = field(default_factory=list)

    def mark(self, remarks: Sequence[str]) -> str:
        """The letters of some remarks: `a,c`."""
        for remark in remarks:
            if remark not in self.remarks:
                self.remarks.append(remark)
        return ",".join(letter(self.remarks.index(remark)) for remark in remarks)

    @property
    def notes(self) -> tuple[str, ...]:
        """All remarks behind their letters."""
        return tuple(f"{letter(number)}: {remark}" for number, remark in enumerate(self.remarks))


def letter(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    letters = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return letters
