"""Progress bars, on stderr, with loss, keep rate and time left."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

from tqdm import tqdm


@contextmanager
def bar(total: int | None, title: str, unit: str) -> Iterator["tqdm[Any]"]:
    """A bar of `total` steps (None: nobody knows) that stays on screen when it ends; nothing of no steps."""
    with _bar(title, unit, None, total) as progress:
        yield progress


@contextmanager
def bars_of(*modules: ModuleType, title: str = "", unit: str = "") -> Iterator[None]:
    """Make the bars of other packages' modules look like ours during the block; without a title there are none."""

    def our_bar(items: Any = None, *, total: int | None = None, disable: bool = False, **looks: Any) -> "tqdm[Any]":
        return _bar(title, unit, items, total, disable or not title)

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(patch.object(module, "tqdm", our_bar))
        yield


def _bar(title: str, unit: str, items: Any, total: int | None, disable: bool = False) -> "tqdm[Any]":
    return tqdm(items, desc=f"{title:<34}", total=total, unit=unit, dynamic_ncols=True, disable=disable or total == 0)
