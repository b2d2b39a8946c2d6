"""What was measured of a dense model is read from the disk, and is what would be measured again."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.second_order.statistics import Recipe, SecondOrder
from policyprune.search.database import Database


def batches(seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(5, 300, (4, 16), generator=generator)} for _ in range(2)]


@pytest.fixture
def prunable(tiny_llama: Any) -> PrunableModel:
    return PrunableModel.of(tiny_llama())


def test_statistics_are_read_back_bit_by_bit(prunable: PrunableModel, tmp_path: Path, monkeypatch: Any) -> None:
    first = Database(tmp_path).second_order(prunable, batches(), first_token=False)
    monkeypatch.setattr(SecondOrder, "of", None)
    again = Database(tmp_path).second_order(prunable, batches(), first_token=False)
    for key, block in first.blocks.items():
        assert torch.equal(again.blocks[key].gram, block.gram)
        assert torch.equal(again.blocks[key].elimination.order, block.elimination.order)
        assert torch.equal(again.blocks[key].elimination.error, block.elimination.error)
    mask = torch.arange(prunable.units.n) % 3 > 0
    for key, weight in first.weights(mask).items():
        assert torch.equal(again.weights(mask)[key], weight)


def test_other_sequences_weights_or_heads_are_other_statistics(
    prunable: PrunableModel, tiny_llama: Any, tmp_path: Path
) -> None:
    folders = set()
    other = PrunableModel.of(tiny_llama(seed=1))
    for own, seed, first_token in ((prunable, 0, False), (prunable, 1, False), (other, 0, False), (prunable, 0, True)):
        database = Database(tmp_path)
        database.second_order(own, batches(seed), first_token)
        folders.add(database.folder)
    database = Database(tmp_path)
    database.second_order(prunable, batches(), first_token=False, recipe=Recipe(ridge=0.01))
    assert len({*folders, database.folder}) == 5


def test_losses_are_computed_once_for_a_mask_and_its_sequences(prunable: PrunableModel, tmp_path: Path) -> None:
    computed: list[tuple[Tensor, Tensor]] = []

    def evaluate(masks: Tensor, rows: Tensor) -> Tensor:
        computed.append((masks, rows))
        return masks.sum() + rows / 3.0

    def remembered(seed: int = 0, about: bytes = b"") -> Any:
        database = Database(tmp_path)
        database.second_order(prunable, batches(), first_token=False)
        ids = batches(seed)[0]["input_ids"]
        return database.remembering(evaluate, lambda rows: {"input_ids": ids[rows]}, lambda: about)

    whole, rows = torch.ones(1, prunable.units.n), torch.tensor([2, 0, 1])
    first = remembered()(whole, rows)
    assert database_lines(tmp_path) == 1
    assert torch.equal(remembered()(whole, rows), first)
    assert len(computed) == 1
    remembered()(whole, rows[:2])
    remembered()(whole * (torch.arange(prunable.units.n) > 0), rows)
    remembered(seed=1)(whole, rows)
    remembered(about=b"other statistics")(whole, rows)
    assert len(computed) == 5
    with next(tmp_path.glob("*/losses.jsonl")).open("a") as file:
        file.write('["half a li')  # as a process that was killed leaves it
    assert torch.equal(remembered()(whole, rows), first)


def test_what_is_damaged_is_computed_again(prunable: PrunableModel, tmp_path: Path) -> None:
    first = Database(tmp_path).second_order(prunable, batches(), first_token=False)
    statistics = next(tmp_path.glob("*/statistics.safetensors"))
    half = statistics.read_bytes()[:1000]
    statistics.unlink()  # what was read from it stays
    statistics.write_bytes(half)
    statistics.with_name("losses.jsonl").write_bytes(b'\xff\n{"a": 1}\n[1, 2, 3]\n["name", 4]\n["name", [null]]\n')
    database = Database(tmp_path)
    again = database.second_order(prunable, batches(), first_token=False)
    assert all(torch.equal(again.blocks[key].gram, block.gram) for key, block in first.blocks.items())
    evaluate = database.remembering(lambda masks, rows: rows / 3.0, lambda rows: {"rows": rows})
    assert torch.equal(evaluate(torch.ones(1, prunable.units.n), torch.arange(3)), torch.arange(3) / 3.0)


def test_the_folder_may_be_removed_at_any_time(prunable: PrunableModel, tmp_path: Path) -> None:
    database = Database(tmp_path)
    database.second_order(prunable, batches(), first_token=False)
    evaluate = database.remembering(lambda masks, rows: rows / 3.0, lambda rows: {"rows": rows})
    assert database.folder is not None
    shutil.rmtree(database.folder)
    evaluate(torch.ones(1, prunable.units.n), torch.arange(3))
    assert database_lines(tmp_path) == 1


def test_a_disk_that_keeps_nothing_is_a_warning(
    prunable: PrunableModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    database = Database(tmp_path / "file")
    mask = torch.arange(prunable.units.n) % 3 > 0
    kept = Database(tmp_path / "kept").second_order(prunable, batches(), first_token=False).weights(mask)
    for key, weight in database.second_order(prunable, batches(), first_token=False).weights(mask).items():
        assert torch.equal(weight, kept[key])
    evaluate = database.remembering(lambda masks, rows: rows / 3.0, lambda rows: {"rows": rows})
    for count in (2, 3):
        assert torch.equal(evaluate(mask[None], torch.arange(count)), torch.arange(count) / 3.0)
    assert caplog.text.count("not kept, the next run computes it again") == 1


@pytest.mark.gpu
def test_statistics_from_the_disk_serve_a_model_on_a_gpu(tiny_llama: Any, gpu: torch.device, tmp_path: Path) -> None:
    prunable = PrunableModel.of(tiny_llama().to(gpu))
    inputs = [{name: tensor.to(gpu) for name, tensor in batch.items()} for batch in batches()]
    mask = torch.arange(prunable.units.n) % 3 > 0
    kept = Database(tmp_path).second_order(prunable, inputs, first_token=False).weights(mask)
    for key, weight in SecondOrder.of(prunable, inputs, first_token=False).weights(mask).items():
        assert torch.equal(kept[key], weight)


def database_lines(base: Path) -> int:
    return len(next(base.glob("*/losses.jsonl")).read_text().splitlines())
