"""A table as words, before it is Markdown, LaTeX or HTML."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cell:
    """A value with its spread and a remark, as they are shown; `state` says in a word why there is no value."""

    value: str = ""
    spread: str = ""
    remark: str = ""
    state: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """The row's names, the footnotes that its names carry, and its cells."""

    names: tuple[str, ...]
    cells: tuple[Cell, ...]
    marks: str = ""
    rule: bool = False  # a line is drawn below


@dataclass(frozen=True)
class Table:
    """Columns stand in groups: (title of the group, titles of its columns); those named in `words` hold text."""

    title: str
    stub: tuple[str, ...]
    groups: tuple[tuple[str, tuple[str, ...]], ...]
    rows: tuple[Row, ...]
    caption: str = ""
    notes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """One title per column, that of its group included."""
        return [
            f"{group}, {own}" if group and own else group or own for group, all_own in self.groups for own in all_own
        ]


def one_line(text: str) -> str:
    """Text of others, as it may be shown: on one line, without letters that steer a terminal or turn lines around."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())


@dataclass
class Footnotes:
    """Letters for remarks, the same letter for the same remark."""

    notes: list[str] = field(default_factory=list)

    def mark(self, remarks: Sequence[str]) -> str:
        """The letters of some remarks: `a,c`."""
        for remark in remarks:
            if remark not in self.notes:
                self.notes.append(remark)
        return ",".join(letter(self.notes.index(remark)) for remark in remarks)

    @property
    def told(self) -> tuple[str, ...]:
        """All remarks behind their letters."""
        return tuple(f"{letter(number)}: {note}" for number, note in enumerate(self.notes))


def letter(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    letters = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return letters
