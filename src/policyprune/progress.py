"""Progress bars, on stderr, with loss, keep rate and time left."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


@contextmanager
def bar(total: int, title: str, unit: str) -> Iterator["tqdm[Any]"]:
    """A bar of `total` steps that stays on screen when it ends."""
    with tqdm(total=total, desc=f"{title:<34}", unit=unit, dynamic_ncols=True) as progress:
        yield progress
