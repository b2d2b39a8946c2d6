"""What is refused of a file or folder before torch is imported, in one line that names model.source."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness import validated
from policyprune.errors import UsageError
from policyprune.models.loading import load, skeleton
from policyprune.storage.sources import check_model, check_source

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
WEIGHTS = "model.safetensors"


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def pointer(folder: Path) -> None:
    (folder / WEIGHTS).write_text(POINTER)


def tokenizer_pointer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(POINTER)


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def cut_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:50])


def empty(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def no_json(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 4) + b"nope")


def no_offsets(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 8) + b'{"a": 1}')


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def cut_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def part_missing(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))


def no_map(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text("{}")


def whole_numbers(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights = {name: tensor.to(torch.int8) if "mlp" in name else tensor for name, tensor in weights.items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def cut_tokenizer_config(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"a": ')


BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (pointer, r"pointer of git-lfs in place of model\.safetensors, `git lfs pull` fetches it"),
    (tokenizer_pointer, r"pointer of git-lfs in place of tokenizer\.json"),
    (cut, r"has a broken model\.safetensors: [\d,]+ bytes of [\d,]+"),
    (cut_header, r"has a broken model\.safetensors"),
    (empty, r"has a broken model\.safetensors"),
    (no_json, r"has a broken model\.safetensors"),
    (no_offsets, r"has a broken model\.safetensors"),
    (adapter, "merge the adapter first"),
    (no_config, r"holds no config\.json"),
    (list_config, r"config\.json that holds no keys"),
    (cut_config, r"config\.json that is no JSON"),
    (no_weights, "holds no weights"),
    (part_missing, r"lacks model-00001-of-00002\.safetensors"),
    (no_map, "without a weight_map"),
    (whole_numbers, r"holds model\.layers\.0\.mlp\.\w+\.weight as I8, and no quantization_config says how"),
    (cut_tokenizer_config, r"tokenizer_config\.json that is no JSON"),
]


@pytest.mark.parametrize(("breaks", "message"), BROKEN, ids=[row[0].__name__ for row in BROKEN])
def test_a_broken_folder_is_refused_in_one_line(breaks: Any, message: str, copy: Path) -> None:
    breaks(copy)
    config = validated("task=text", "task.files=[a.txt]", f"model.source={copy}", "model.device=cpu")
    for ask in (lambda: check_source(str(copy)), lambda: load(config.model, config.task)):
        with pytest.raises(UsageError, match=message) as raised:
            ask()
        assert str(raised.value).startswith(f"model.source: {str(copy)!r}")
        assert "\n" not in str(raised.value)


def test_a_whole_folder_is_taken(copy: Path) -> None:
    check_source(str(copy))


def test_the_doctor_needs_no_weights(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    check_source(str(copy), weights=False)
    config = validated("task=text", "task.files=[a.txt]", f"model.source={copy}", "model.device=cpu")
    assert skeleton(config.model, config.task).device.type == "meta"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"hello", "is a file, name the folder"),
        ("a.gguf", POINTER.encode(), "is a pointer of git-lfs"),
        ("a.gguf", b"", "is no GGUF file"),
        ("a.gguf", b"GGUF\x03\x00", "cannot be loaded"),
        ("a.gguf", b"GGUF" + b"\xff" * 64, "cannot be loaded"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    config = validated("task=text", "task.files=[a.txt]", f"model.source={path}", "model.device=cpu")
    with pytest.raises(UsageError, match=message) as raised:
        load(config.model, config.task)
    assert str(raised.value).startswith(f"model.source: {str(path)!r}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "source",
    [
        "/no/such/epoch=3",
        "nothing.gguf",
        "no/where.gguf",
        "outputs/a/checkpoint",
        "some where",
        "a=3/b",
        "~nobody-here/x",
    ],
)
def test_what_is_nowhere_and_no_name_is_refused(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"^model\.source: .* does not exist"):
        check_source(source)


@pytest.mark.parametrize("source", ["gpt2", "owner/name", "owner/name-1.5_b", "owner/name/a/b.Q4.gguf"])
def test_a_name_on_the_hub_is_taken(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_source(source)


@pytest.mark.parametrize("source", ["x" * 300, "/" + "x" * 300])
def test_a_path_that_cannot_be_looked_at_is_refused(source: str) -> None:
    with pytest.raises(UsageError, match=r"^model\.source: .*(cannot be read|does not exist)"):
        check_source(source)


def test_a_folder_that_may_not_be_read_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(UsageError, match=r"^model\.source: .* cannot be read: Permission denied$"):
        check_model(str(copy), copy)


def test_brackets_and_equals_in_a_path_are_nothing_special(copy: Path, tmp_path: Path) -> None:
    odd = copy.rename(tmp_path / "epoch=3 [best]")
    config = validated("task=text", "task.files=[a.txt]", f"model.source='{odd}'", "model.device=cpu")
    check_source(config.model.source)
    load(config.model, config.task)


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("a\nb"), TypeError("no"), AttributeError("none")])
def test_whatever_a_library_raises_is_one_line(error: Exception, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr("policyprune.models.loading.AutoTokenizer.from_pretrained", fails)
    config = validated("task=text", "task.files=[a.txt]", f"model.source={copy}", "model.device=cpu")
    with pytest.raises(UsageError, match=rf"^model\.source: .* cannot be loaded: {type(error).__name__}: ") as raised:
        load(config.model, config.task)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "error", [MemoryError(), KeyboardInterrupt(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_what_is_no_fault_of_the_model_passes(
    error: BaseException, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr("policyprune.models.loading.AutoTokenizer.from_pretrained", fails)
    config = validated("task=text", "task.files=[a.txt]", f"model.source={copy}", "model.device=cpu")
    with pytest.raises(type(error)):
        load(config.model, config.task)
