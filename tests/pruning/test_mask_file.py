"""Masks on disk, and what they keep."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from policyprune.errors import UsageError
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.mask_file import keep_rates, load_compensation, load_mask, save_mask
from policyprune.pruning.space import Group, Space


def test_a_mask_comes_back_with_its_space(synthetic_space: Any, tmp_path: Path) -> None:
    space = synthetic_space([(4, 10)] * 12)  # more than ten layers: 10 must not come before 2
    mask = torch.rand(space.n) < 0.5
    save_mask(tmp_path / "mask.safetensors", mask, space, torch.rand(space.n))
    again, loaded = load_mask(tmp_path / "mask.safetensors")
    assert again == space
    assert torch.equal(loaded, mask)
    assert [path.name for path in tmp_path.iterdir()] == ["mask.safetensors"]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_any_dtype_is_written_as_bool(synthetic_space: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    space = synthetic_space([(2, 3)])
    mask = torch.tensor([1, 0, 0, 1, 1]).to(dtype)
    save_mask(tmp_path / "mask.safetensors", mask, space, torch.rand(5))
    assert load_mask(tmp_path / "mask.safetensors")[1].tolist() == [True, False, False, True, True]


def test_a_space_of_channels_alone_comes_back(tmp_path: Path) -> None:
    space = Space((Group(0, "ffn", 3), Group(2, "ffn", 2)))
    save_mask(tmp_path / "mask.safetensors", torch.ones(5), space, torch.ones(5))
    assert load_mask(tmp_path / "mask.safetensors")[0] == space


def test_the_probabilities_stand_beside_the_mask(synthetic_space: Any, tmp_path: Path) -> None:
    space = synthetic_space([(2, 3), (2, 3)])
    probabilities = torch.rand(space.n, dtype=torch.float64)
    save_mask(tmp_path / "mask.safetensors", probabilities > 0.5, space, probabilities)
    tensors = load_file(tmp_path / "mask.safetensors")
    for (layer, kind), view in space.views(probabilities).items():
        torch.testing.assert_close(tensors[f"{kind}.{layer}.probability"], view.float())


def test_a_new_mask_replaces_the_old_one(synthetic_space: Any, tmp_path: Path) -> None:
    space = synthetic_space([(2, 3)])
    for value in (0, 1):
        save_mask(tmp_path / "mask.safetensors", torch.full((5,), value), space, torch.ones(5))
    assert load_mask(tmp_path / "mask.safetensors")[1].all()


def test_keep_rates_are_counted_per_block(synthetic_space: Any) -> None:
    mask = torch.tensor([1, 0, 1, 1, 1, 0, 0, 0], dtype=torch.bool)
    assert keep_rates(mask, synthetic_space([(2, 2), (1, 3)])) == [
        {"layer": 0, "kind": "attention", "kept": 1, "count": 2, "rate": 0.5},
        {"layer": 0, "kind": "ffn", "kept": 2, "count": 2, "rate": 1.0},
        {"layer": 1, "kind": "attention", "kept": 1, "count": 1, "rate": 1.0},
        {"layer": 1, "kind": "ffn", "kept": 0, "count": 3, "rate": 0.0},
    ]


@pytest.fixture
def written(synthetic_space: Any, tmp_path: Path) -> Path:
    space = synthetic_space([(2, 3), (2, 3)])
    scales = Compensation(scales=torch.rand(space.n))
    save_mask(tmp_path / "mask.safetensors", torch.rand(space.n) < 0.5, space, torch.rand(space.n), scales)
    return tmp_path / "mask.safetensors"


def test_any_flipped_bit_of_the_values_is_noticed(written: Path) -> None:
    whole = written.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for at in range(start, len(whole)):
        written.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UsageError, match=r"mask: '[^\n]*mask\.safetensors' is damaged[^\n]*$"):
            load_mask(written)
        with pytest.raises(UsageError, match="is damaged"):
            load_compensation(written, Space(()))


def test_what_is_no_whole_mask_is_refused_in_one_line(written: Path, tmp_path: Path) -> None:
    whole = written.read_bytes()
    save_file({"ffn.0": torch.ones(3)}, tmp_path / "model.safetensors")
    foreign = (tmp_path / "model.safetensors").read_bytes()
    for content in (b"", b"version https://git-lfs", whole[:7], whole[:90], whole[:-1], foreign):
        written.write_bytes(content)
        with pytest.raises(UsageError, match=r"optimizer\.folder: '[^\n]*' is (damaged|no policyprune-mask-1)[^\n]*$"):
            load_mask(written, "optimizer.folder")
    written.unlink()
    for place in (written, tmp_path):
        with pytest.raises(UsageError, match=r"mask: '[^\n]*' (cannot be read|is damaged)[^\n]*$"):
            load_mask(place)


def test_a_mask_without_a_checksum_is_read_as_before(written: Path) -> None:
    before = load_mask(written)[1]
    save_file(load_file(written), written, metadata={"format": "policyprune-mask-1"})
    assert torch.equal(load_mask(written)[1], before)
