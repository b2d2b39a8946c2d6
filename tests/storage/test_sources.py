"""What a source string stands for."""

import sys
from pathlib import Path

import pytest

from policyprune.errors import UsageError
from policyprune.storage.sources import locate


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a data file, which must not be imported to be found."""
    folder = tmp_path / "policyprune_test_data"
    (folder / "texts").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "texts" / "a.txt").write_text("hello")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_a_file_inside_a_package_is_found_without_importing_it(package: Path) -> None:
    path = locate("task.files", "pkg://policyprune_test_data/texts/a.txt")
    assert path is not None
    assert path.read_text() == "hello"
    assert "policyprune_test_data" not in sys.modules


def test_a_folder_inside_a_package_is_found(package: Path) -> None:
    assert locate("task.files", "pkg://policyprune_test_data/texts") == package / "texts"


def test_a_missing_package_is_named(package: Path) -> None:
    with pytest.raises(UsageError, match=r"task\.files: .*needs the package 'no_such_package_here'"):
        locate("task.files", "pkg://no_such_package_here/a.txt")


def test_a_missing_file_of_a_package_is_named(package: Path) -> None:
    with pytest.raises(UsageError, match=r"task\.files: 'pkg://policyprune_test_data/b\.txt' names no file"):
        locate("task.files", "pkg://policyprune_test_data/b.txt")


def test_a_plain_module_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policyprune_test_module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="policyprune_test_module"):
        locate("model.source", "pkg://policyprune_test_module/a")


def test_a_local_path_is_returned(tmp_path: Path) -> None:
    assert locate("model.source", str(tmp_path)) == tmp_path


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert locate("model.source", "~/model") == tmp_path / "model"


@pytest.mark.parametrize("source", ["/no/such/folder", "./no-such-folder", "~/no-such-folder"])
def test_a_path_that_is_not_there_is_an_error(source: str) -> None:
    with pytest.raises(UsageError, match=r"model\.source: .*does not exist"):
        locate("model.source", source)


@pytest.mark.parametrize("source", ["gpt2", "owner/name", "owner/name/file.gguf"])
def test_a_hub_id_is_on_no_disk(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("model.source", source) is None
