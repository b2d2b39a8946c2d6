"""TensorBoard: the search curve as scalars, the config and the final metrics as hyperparameters, beside the record."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoardTracker:
    """Event files in `folder/tensorboard`; `tensorboard --logdir outputs` compares the runs."""

    def __init__(self, run_config: dict[str, Any], folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._config = run_config
        self._writer = SummaryWriter(str(folder / "tensorboard"))  # type: ignore[no-untyped-call]

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One point of the search curve."""
        for key, value in values.items():
            self._writer.add_scalar(f"search/{key}", value, step)  # type: ignore[no-untyped-call]

    def finish(self, summary: Mapping[str, Any], keep_rates: list[dict[str, Any]], failed: bool) -> None:
        """The keep rate of each layer as a curve over the layers, the metrics beside the config; close the files."""
        for row in keep_rates:
            self._writer.add_scalar(f"keep_rate/{row['kind']}", row["rate"], row["layer"])  # type: ignore[no-untyped-call]
        if summary and not failed:
            metrics = {key: value for key, value in summary.items() if value is not None}
            self._writer.add_hparams(flat(self._config), metrics, run_name=".")  # type: ignore[no-untyped-call]
        self._writer.close()  # type: ignore[no-untyped-call]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | float | str]:
    """A nested config under dotted keys; what is no bool, number or string is written as JSON, null is left out."""
    values: dict[str, bool | float | str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            values[prefix + key] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return values
