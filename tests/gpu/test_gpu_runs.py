"""The command on a GPU: the same seed twice, alone and under torchrun."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import policyprune
from encoders import reviews, save_encoder, write_lines
from harness import clean_environment, paragraphs, small_run, write_corpus
from policyprune.runs.record import read_record

pytestmark = pytest.mark.gpu
METHODS = ("ours", "straight_through", "policy_gradient")
SEARCH = ["optimizer=policy_gradient", "optimizer.steps=6", "optimizer.batch_size=4", "optimizer.masks=3"]
TRAINED = ["recovery=distill", "recovery.steps=12", "recovery.learning_rate=3e-3", "recovery.length=16"]
SOURCE = str(Path(policyprune.__file__).parents[1])
NCCL = """
import torch
import torch.distributed as dist
from policyprune.search.team import Team

team = Team()
assert (team.rank, team.size) == (0, 1)
assert "nccl" in str(dist.get_backend_config()), dist.get_backend_config()
masks = (torch.arange(12, device="cuda").view(3, 4) % 5 > 1).float()
jobs = [(masks, torch.arange(3)), (masks[:1], torch.arange(2))]

def local(jobs):
    return [own.sum(1) / 3 + rows.to(own.device) for own, rows in jobs]

for found, expected in zip(team.each(local, jobs), local(jobs), strict=True):
    assert torch.equal(found, expected), (found, expected)
team.dismiss()
assert not dist.is_initialized()
"""


class Started:
    """A Python command in a folder of its own, with a cache of its own, on the first GPU that there is."""

    def __init__(self, cwd: Path, *arguments: str) -> None:
        cwd.mkdir(parents=True, exist_ok=True)
        self.cwd = cwd
        paths = os.pathsep.join(filter(None, [SOURCE, os.environ.get("PYTHONPATH")]))
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
        own = {"PYTHONPATH": paths, "POLICYPRUNE_CACHE": str(cwd / "cache"), "CUDA_VISIBLE_DEVICES": first}
        with (cwd / "output").open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, *arguments], cwd=cwd, env=clean_environment(**own), stdout=output, stderr=output
            )

    def ended(self) -> Path:
        """The folder, after a command that succeeded."""
        try:
            code = self._process.wait(timeout=240)
        finally:
            self._process.kill()
        assert code == 0, (self.cwd / "output").read_text()[-3000:]
        return self.cwd


def torchrun(count: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]


@pytest.fixture(scope="module")
def small(learned_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    corpus = write_corpus(tmp_path_factory.mktemp("corpus") / "stories.txt", paragraphs(150))
    return lambda *more: small_run(learned_checkpoint, corpus, "model.device=cuda", "evaluation=none", *more)


def results(cwd: Path) -> dict[str, tuple[bytes, bytes]]:
    """Mask and weights of each run below a folder, by method."""
    found = {}
    for path in cwd.rglob("record.json"):
        record = read_record(path.parent)
        assert record is not None
        assert record.hardware["device"] != "cpu"
        files = path.parent / "mask.safetensors", path.parent / "checkpoint" / "model.safetensors"
        found[record.config["method"]] = (files[0].read_bytes(), files[1].read_bytes())
    return found


def test_the_same_seed_gives_the_same_mask_and_weights(
    gpu: torch.device, small: Callable[..., list[str]], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    encoder = save_encoder(tmp_path / "tiny-bert", tiny_tokenizer)
    labelled = [f"model.source={encoder}", "model.name=tiny", "model.device=cuda", "task=glue/sst2", "evaluation=none"]
    for seed, split in enumerate(("train", "validation")):
        labelled.append(f"++task.data_files.{split}={write_lines(tmp_path / f'{split}.jsonl', reviews(60, seed))}")
    ppo = ["optimizer.iterations=2", "optimizer.episodes=3", "optimizer.chunk=8", "optimizer.examples=32"]
    commands = {
        "texts": ["-m", "policyprune", "-m", f"method={','.join(METHODS)}", *small()],
        "labels": ["-m", "policyprune", "method=gpruner", *labelled, "task.calibration.count=48", *ppo],
    }
    started = [[Started(tmp_path / name / f"{n}", *own) for n in range(2)] for name, own in commands.items()]
    for twice, methods in zip(started, (METHODS, ("gpruner",)), strict=True):
        first, second = (results(own.ended()) for own in twice)
        assert set(first) == set(methods)
        assert [name for name in methods if first[name] != second[name]] == []


def test_two_processes_that_share_a_gpu_find_what_one_finds(
    gpu: torch.device, small: Callable[..., list[str]], tmp_path: Path
) -> None:
    command = ["-m", "policyprune", *small(*SEARCH, "export=none", "hydra.run.dir=run")]
    one, two = Started(tmp_path / "one", *command), Started(tmp_path / "two", *torchrun(2), *command)
    runs = [own.ended() / "run" for own in (one, two)]
    for name in ("mask.safetensors", "curve.jsonl"):
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes(), name
    record = read_record(runs[1])
    assert record is not None
    assert record.search["processes"] == 2


def test_one_process_of_nccl(gpu: torch.device, small: Callable[..., list[str]], tmp_path: Path) -> None:
    """Its messages, and a whole run with a training, in which torchrun makes no difference."""
    (tmp_path / "team.py").write_text(NCCL, encoding="utf-8")
    team = Started(tmp_path / "team", *torchrun(1), str(tmp_path / "team.py"))
    quick = ["importance=magnitude", "optimizer=one_shot", "tuning=none", "budget.keep=0.6"]
    command = ["-m", "policyprune", *small(*quick, *TRAINED, "hydra.run.dir=run")]
    alone, under = Started(tmp_path / "alone", *command), Started(tmp_path / "under", *torchrun(1), *command)
    team.ended()
    one, other = (read_record(own.ended() / "run") for own in (alone, under))
    assert one is not None
    assert other is not None
    assert one.recovery["outcome"] == other.recovery["outcome"] == "recovered"
    assert one.recovery["tokens"] == other.recovery["tokens"]
    assert other.recovery["held_out"] == pytest.approx(one.recovery["held_out"], rel=1e-2)
