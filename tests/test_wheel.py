"""The wheel is whole: installed without the checkout, from a folder elsewhere, it lists, composes and runs."""

import json
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from harness import SMALL_EVALUATION, clean_environment, paragraphs, small_run, write_corpus

ROOT = Path(__file__).parents[1]
PACKED = ("conf", "sweeps")  # beside src/ in a checkout, inside the package in the wheel


def done(*command: str | Path, cwd: Path) -> str:
    """What a command printed; it must succeed. The checkout is not on its path."""
    environment = {key: value for key, value in clean_environment().items() if key != "PYTHONPATH"}
    ran = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir")
    done(sys.executable, "-m", "pip", *build, folder, ROOT, cwd=folder)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The folder of commands of an environment that sees the packages of this one, but not its editable policyprune."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    done(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    ours = sysconfig.get_path("purelib", vars={"base": str(folder)})
    # pip and all else come from here; a .pth file inside a folder that a .pth file names is not read
    (Path(ours) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    python = folder / "bin" / "python"
    done(python, "-m", "pip", "install", "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=folder.parent)
    return folder / "bin"


def test_the_wheel_has_every_option_and_sweep(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    for folder in PACKED:
        files = {f"policyprune/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*.yaml")}
        assert files
        assert files <= packed
    assert "policyprune/py.typed" in packed
    assert not [name for name in packed if name.startswith(("tests", "src", "docs"))]


def test_the_package_is_the_installed_one(installed: Path, tmp_path: Path) -> None:
    code = "import policyprune; print(policyprune.__file__, policyprune.__version__)"
    file, said = done(installed / "python", "-c", code, cwd=tmp_path).split()
    assert Path(file).is_relative_to(installed.parent)
    assert said == version("policyprune")
    assert said in done(installed / "policyprune", "--version", cwd=tmp_path)


def test_help_config_and_sweeps(installed: Path, tmp_path: Path) -> None:
    command = installed / "policyprune"
    assert "smollm2_135m" in done(command, "--help", cwd=tmp_path)
    assert "model:" in done(command, "--cfg", "job", cwd=tmp_path)
    assert "paper/pg_heads_channels" in done(command, "sweep", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run(installed: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    corpus = write_corpus(tmp_path / "stories.txt", paragraphs(150))
    method = ["optimizer=one_shot", "importance=magnitude", "tuning=none"]
    done(
        installed / "policyprune",
        *small_run(
            tiny_checkpoint, corpus, *method, *SMALL_EVALUATION, "evaluation.fresh_process=false", "hydra.run.dir=run"
        ),
        cwd=tmp_path,
    )
    record = json.loads((tmp_path / "run" / "record.json").read_text(encoding="utf-8"))
    assert record["status"] == "finished"
    assert record["versions"]["policyprune"] == version("policyprune")
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").is_file()
