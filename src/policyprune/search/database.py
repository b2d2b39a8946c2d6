"""What a search over widths learns of a dense model, kept on disk: the next budget does not measure it again."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from policyprune.errors import describe
from policyprune.models.identity import identity_of
from policyprune.pruning.optimizers.problem import Evaluate
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.second_order.elimination import Elimination
from policyprune.pruning.second_order.statistics import USUAL, BlockStatistics, Recipe, SecondOrder
from policyprune.storage.files import made_once, sparing_the_next_run, write_file

log = logging.getLogger(__name__)

Inputs = Callable[[Tensor], dict[str, Tensor]]


@dataclass
class Database:
    """Second-order statistics, and losses of masks with the weights that these give, in a folder of their own.

    The folder's name is a hash of all that they depend on: weights, code, versions, threads, units and the calibration
    sequences themselves. It can be removed at any time. What is damaged there is computed again, and a disk that
    refuses to keep it is no error.
    """

    base: Path
    folder: Path | None = field(default=None, init=False)

    def second_order(
        self, prunable: PrunableModel, batches: list[dict[str, Tensor]], first_token: bool, recipe: Recipe = USUAL
    ) -> SecondOrder:
        """Gathered once; read from the disk from then on."""
        if any(parameter.is_meta for parameter in prunable.model.parameters()):  # offloaded: loaded as it runs
            return SecondOrder.of(prunable, batches, first_token, recipe)
        about = [identity_of(prunable.model), str(prunable.units.groups), first_token, str(recipe)]
        content = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for batch in batches:
            content.update(_bytes_of(batch))
        self.folder = self.base / content.hexdigest()[:24]
        path = self.folder / "statistics.safetensors"
        if (blocks := _read(path)) is not None:
            log.info("the second-order statistics of this model and these sequences are in %s", self.folder)
            return SecondOrder(prunable, blocks, recipe)
        gathered: list[SecondOrder] = []

        def gather(target: Path) -> None:
            gathered.append(SecondOrder.of(prunable, batches, first_token, recipe))
            _write(target, gathered[0])
            gathered.clear()  # those on the disk take no memory

        with sparing_the_next_run():
            made_once(path, gather)
        blocks = None if gathered else _read(path)
        if blocks is not None:
            return SecondOrder(prunable, blocks, recipe)
        self.folder = None
        return gathered[0] if gathered else SecondOrder.of(prunable, batches, first_token, recipe)

    def remembering(self, evaluate: Evaluate, inputs: Inputs, about: Callable[[], bytes] = bytes) -> Evaluate:
        """The same losses of single masks, each computed once; `inputs(rows)` are what it is computed on, `about()`
        names other statistics than those of the dense model that masks get their weights from."""
        if self.folder is None:
            return evaluate
        path = self.folder / "losses.jsonl"
        known, keeps = dict(_lines(path)), True

        def remembered(masks: Tensor, rows: Tensor) -> Tensor:
            nonlocal keeps
            name = hashlib.sha256(masks.bool().cpu().numpy().tobytes() + _bytes_of(inputs(rows)) + about()).hexdigest()[
                :32
            ]
            if name not in known:
                known[name] = evaluate(masks, rows).tolist()
                keeps = keeps and _append(path, json.dumps([name, known[name]]) + "\n")
            return torch.tensor(known[name], device=masks.device)

        return remembered


def _append(path: Path, line: str) -> bool:
    """Whether the disk took it."""
    with sparing_the_next_run():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
        return True
    return False


def _lines(path: Path) -> Iterator[tuple[str, list[float]]]:
    """What is whole in the file; a process that was killed may have left half a line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            name, losses = json.loads(line)
            yield str(name), [float(loss) for loss in losses]
        except (ValueError, TypeError):
            continue


def _write(path: Path, known: SecondOrder) -> None:
    tensors = dict[str, Tensor]()
    for (layer, kind), block in known.blocks.items():
        of_block = {"gram": block.gram.cpu(), "order": block.elimination.order, "error": block.elimination.error}
        tensors |= {f"{kind}.{layer}.{name}": tensor.contiguous() for name, tensor in of_block.items()}
    with write_file(path) as scratch:
        save_file(tensors, scratch)


def _read(path: Path) -> dict[tuple[int, str], BlockStatistics] | None:
    """What the file holds; None, and no file, where it is damaged."""
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        log.warning("%s is not readable, it is made anew: %s", path, describe(error))
        with sparing_the_next_run():
            path.unlink()
        return None
    keys = [name.removesuffix(".gram").split(".") for name in tensors if name.endswith(".gram")]
    return {
        (int(layer), kind): BlockStatistics(
            tensors[f"{kind}.{layer}.gram"],
            Elimination(tensors[f"{kind}.{layer}.order"], tensors[f"{kind}.{layer}.error"]),
        )
        for kind, layer in keys
    }


def _bytes_of(batch: dict[str, Tensor]) -> bytes:
    return b"".join(name.encode() + batch[name].cpu().numpy().tobytes() for name in sorted(batch))
