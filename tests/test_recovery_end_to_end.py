"""Runs with a recovery through the console command, on a tiny random model; one is killed while it trains."""

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from forking import alive, forked, shared
from harness import SMALL_EVALUATION, foreign_lines, paragraphs, small_run, write_corpus
from policyprune.report.contents import make_report
from policyprune.report.runs import find_runs
from policyprune.runs.record import read_record
from policyprune.runs.summary import summary

QUICK = ["optimizer=one_shot", "importance=magnitude", "tuning=cg2", "tuning.sequences=16", "budget.keep=0.6"]
TRAINED = ["recovery.steps=24", "recovery.length=16", "recovery.held_out=16", "recovery.learning_rate=3e-3"]
SLOWLY = """
import time
from policyprune.recovery.trainer import Teaching
step = Teaching.training_step
def slow(self, *args, **kwargs):
    time.sleep(0.03)
    return step(self, *args, **kwargs)
Teaching.training_step = slow
"""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Callable[..., list[str]]:
    corpus = write_corpus(tmp_path_factory.mktemp("corpus") / "stories.txt", paragraphs(150))
    return lambda *more: small_run(tiny_checkpoint, corpus, *QUICK, *TRAINED, "hydra.run.dir=run", *more)


def test_a_run_measures_and_writes_the_recovered_model(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    done = forked(*arguments("recovery=finetune", *SMALL_EVALUATION), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert foreign_lines(done.stderr) == []
    record = read_record(tmp_path / "run")
    assert record is not None
    assert [stage["name"] for stage in record.stages][-4:] == ["tuning", "recovery", "export", "evaluation"]
    assert record.recovery["outcome"] == "recovered"
    assert (record.recovery["tokens"], record.recovery["teacher"]) == (24 * 8 * 16, None)
    perplexity = {row.subject: row.value for row in record.results if row.metric == "perplexity" and row.value}
    assert perplexity["recovered"] < 0.5 * min(perplexity["pruned"], perplexity["tuned"])
    assert perplexity["reloaded"] == pytest.approx(perplexity["recovered"], rel=1e-3)
    assert {row.subject for row in record.results if row.metric == "checkpoint"} == {"dense", "recovered"}
    assert "one shot, recovered" in done.stdout
    assert "recovery time, s" in done.stdout
    assert not (tmp_path / "run" / "trainer").exists()
    card = (tmp_path / "run" / "checkpoint" / "README.md").read_text(encoding="utf-8")
    assert "then trained on the task's loss" in card


def test_a_training_that_is_killed_ends_as_if_it_had_not_been(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    command = arguments("recovery=distill", "recovery.patience=null", "evaluation=none")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    assert shared().run(*command, cwd=whole) == 0, (whole / "stderr").read_text()
    saved = broken / "run" / "trainer"
    for step in (3, 12, 21):
        pid = shared().start(*command, cwd=broken, first=SLOWLY)
        deadline = time.perf_counter() + 60
        while not (saved / f"checkpoint-{step}").is_dir():  # which may be half written then
            assert alive(pid), (broken / "stderr").read_text()
            assert time.perf_counter() < deadline
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        assert shared().wait(pid) == -signal.SIGKILL
    assert shared().run(*command, cwd=broken) == 0, (broken / "stderr").read_text()
    expected, found = (load_file(folder / "run" / "checkpoint" / "model.safetensors") for folder in (whole, broken))
    assert all(expected[name].equal(tensor) for name, tensor in found.items())
    records = [read_record(folder / "run") for folder in (whole, broken)]
    curves = [[row["held_out_loss"] for row in record.recovery["curve"]] for record in records if record]
    assert curves[0] == curves[1]
    assert len(curves[0]) > 3


def test_what_was_trained_is_not_made_again_from_the_mask(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    """A finished run that lost its checkpoint is run again, and a plan is not exported in its place."""
    quick = ["recovery=finetune", "recovery.steps=2", "recovery.evaluations=1", "evaluation=none"]
    assert forked(*arguments(*quick), cwd=tmp_path).returncode == 0
    weights = tmp_path / "run" / "checkpoint" / "model.safetensors"
    first = load_file(weights)
    weights.unlink()
    done = forked(*arguments(*quick), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "it is run again" in done.stderr + done.stdout + (tmp_path / "run" / "run.log").read_text()
    assert all(first[name].equal(tensor) for name, tensor in load_file(weights).items())
    done = forked(*arguments(*quick, "export=none", "hydra.run.dir=bare"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = forked("export", "bare", "format=hf", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "policyprune: source: 'bare' has no checkpoint, and its plan has not the weights that"
    )


def test_a_run_is_recovered_afterwards(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    pruned = [word for word in arguments("evaluation=none") if not word.startswith("recovery.")]
    done = forked(*pruned, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    more = ["recovery=lora", "recovery.task_loss=0.9", "recovery.rank=4", *TRAINED, *SMALL_EVALUATION]
    more += ["evaluation=perplexity", "evaluation.fresh_process=false", "hydra.run.dir=back"]
    done = forked("recover", "run", *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert foreign_lines(done.stderr) == []
    record = read_record(tmp_path / "back")
    assert record is not None
    assert (record.config["keep"], record.config["pruned_by"], record.config["tuned"]) == (0.6, "magnitude", "cg2")
    assert record.recovery["teacher"] == record.config["teacher"]
    perplexity = {row.subject: row.value for row in record.results if row.metric == "perplexity" and row.value}
    assert perplexity["recovered"] < 0.8 * perplexity["pruned"]
    assert (tmp_path / "back" / "adapter" / "adapter_model.safetensors").is_file()
    assert "pruned, recovered" in done.stdout
    card = (tmp_path / "back" / "checkpoint" / "README.md").read_text(encoding="utf-8")
    assert "pruned by `magnitude`, 0.6 of the dense model, tuned by `cg2`" in card
    assert f"steps of {record.recovery['batch']} sequences of 16 tokens" in card
    assert str(tmp_path) not in card
    again = forked("recover", "run", *more, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert read_record(tmp_path / "back") == record
    report = make_report("both", find_runs([tmp_path]), [])
    (table,) = (own for section in report.sections for own in section.tables if own.title.startswith("perplexity"))
    rows = {row.names[:3]: row.cells[0] for row in table.rows}
    assert rows["magnitude", "cg2", "lora"].value
    assert rows["magnitude", "cg2", ""].state == "not measured"


@pytest.fixture(scope="module")
def compressed(arguments: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which experiment=compress has made `run`, and what that printed."""
    folder = tmp_path_factory.mktemp("compressed")
    small = [word for word in arguments(*SMALL_EVALUATION) if word.startswith(("model", "task", "evaluation."))]
    quick = ["importance.sequences=16", "recovery.length=16", "recovery.held_out=16", "hydra.run.dir=run"]
    done = forked("experiment=compress", "recovery.seconds=1", *small, *quick, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_compress_measures_every_stage_and_is_gone_on_with(compressed: tuple[Path, str]) -> None:
    folder, printed = compressed
    record = read_record(folder / "run")
    assert record is not None
    measured = [row.subject for row in record.results if row.metric == "perplexity"]
    assert measured == ["dense", "pruned", "tuned", "recovered", "reloaded"]
    assert summary(record) in printed
    assert 0.5 < record.recovery["seconds"] < 2
    again = ["recovery.steps=2", *TRAINED[1:], "evaluation.fresh_process=false", "hydra.run.dir=again"]
    done = forked("recover", "run", *again, cwd=folder)
    assert done.returncode == 0, done.stderr
    report = make_report("both", find_runs([folder / "run", folder / "again"]), [])
    (table,) = (own for section in report.sections for own in section.tables if own.title.startswith("perplexity"))
    recoveries = {row.names[2] for row in table.rows if row.names[0] == "ours"}
    assert recoveries == {"", "distill", "distill + distill"}


def test_a_recovered_model_is_pruned_again_and_learns_from_the_first_one(
    compressed: tuple[Path, str], tiny_checkpoint: Path, arguments: Callable[..., list[str]]
) -> None:
    """The chain of docs/recover.md: the budget is a share of the checkpoint, the teacher is who is named."""
    folder, _ = compressed
    more = [word for word in arguments("evaluation=none") if not word.startswith(("recovery.", "model.source"))]
    more += ["model.source=run/checkpoint", "model.trust_remote_code=true", "hydra.run.dir=second"]
    done = forked(*more, cwd=folder)
    assert done.returncode == 0, done.stderr
    first, second = (read_record(folder / name) for name in ("run", "second"))
    assert first is not None
    assert second is not None
    for kind in ("attention", "ffn"):
        left = [sum(row["kept"] for row in own.keep_rates if row["kind"] == kind) for own in (first, second)]
        assert left[1] == round(0.6 * left[0])
    quick = ["recovery.steps=2", *TRAINED[1:], "evaluation=none", "evaluation.fresh_process=false"]
    chain = ["recover", "second", f"teacher={tiny_checkpoint}", "keep=0.3", *quick, "hydra.run.dir=third"]
    done = forked(*chain, cwd=folder)
    assert done.returncode == 0, done.stderr
    third = read_record(folder / "third")
    assert third is not None
    assert (third.recovery["teacher"], third.config["keep"]) == (str(tiny_checkpoint), 0.3)


def test_a_checkpoint_needs_the_name_of_its_dense_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = forked("recover", str(tiny_checkpoint), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("policyprune: teacher: recovery=distill needs the dense model")
    done = forked("recover", str(tiny_checkpoint), "recovery=none", cwd=tmp_path)
    assert done.stderr == "policyprune: recovery: 'none' does nothing, use distill, finetune or lora\n"
    assert {path.name for path in tmp_path.iterdir()} <= {"stdout", "stderr"}


def test_a_dense_model_that_is_not_there_is_called_the_teacher(
    arguments: Callable[..., list[str]], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    task = [word for word in arguments() if word.startswith(("task", "hydra"))]
    done = forked("recover", str(tiny_checkpoint), "teacher=nothere", *task, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("policyprune: teacher: 'nothere' cannot be loaded")
    assert not (tmp_path / "run").exists()


ON_CPUS = """
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from policyprune.recovery import devices
original = AcceleratorState.__init__
def sharing(self, *args, fsdp_plugin=None, **kwargs):
    original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
AcceleratorState.__init__ = sharing
devices.check_sharding = lambda device: None
"""
FSDP = {  # what `accelerate launch` says
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}


def start_two(command: list[str], folder: Path, environment: dict[str, str], first: str = "") -> list[int]:
    """The command in two processes, each in a folder of its own below `folder`, in which there is the run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in (0, 1):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        said = environment | {key: str(value) for key, value in place.items()}
        own = folder / f"rank{rank}"
        own.mkdir(exist_ok=True)
        if not (own / "run").is_symlink():
            (own / "run").symlink_to(folder / "run")
        started.append(shared().start(*command, cwd=own, first=f"import os; os.environ.update({said})\n{first}"))
    return started


def test_two_processes_train_one_model(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    """Each has half of the batch that one process has, and all weights or, by FSDP2, half of them; they come to the
    same weights, to rounding, also where they are killed on the way."""
    pruned = [word for word in arguments("evaluation=none") if not word.startswith("recovery.")]
    done = forked(*pruned, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    quick = ["recover", "run", "recovery=finetune", *TRAINED, "recovery.steps=6", "recovery.dtype=float32"]
    quick += ["evaluation=none", "evaluation.fresh_process=false", "recovery.evaluations=3"]
    halves = [*quick, "recovery.batch_size=4"]
    done = forked(*quick, "recovery.batch_size=8", "hydra.run.dir=one", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    both, parts = (tmp_path / "rank0" / name for name in ("both", "parts"))
    ended = [shared().wait(pid) for pid in start_two([*halves, "hydra.run.dir=both"], tmp_path, {})]
    assert ended == [0, 0], [(tmp_path / f"rank{rank}" / "stderr").read_text() for rank in (0, 1)]
    assert {path.name for path in (tmp_path / "rank1").iterdir()} == {"run", "stdout", "stderr"}

    command = [*halves, "hydra.run.dir=parts"]
    started = start_two(command, tmp_path, FSDP, ON_CPUS + SLOWLY)
    deadline = time.perf_counter() + 60
    while not (parts / "trainer" / "checkpoint-4" / "trainer_state.json").is_file():
        assert all(alive(pid) for pid in started), (tmp_path / "rank0" / "stderr").read_text()
        assert time.perf_counter() < deadline
        time.sleep(0.002)
    for pid in started:
        os.kill(pid, signal.SIGKILL)
    assert [shared().wait(pid) for pid in started] == 2 * [-signal.SIGKILL]
    assert (parts / "trainer" / "checkpoint-4" / "pytorch_model_fsdp_0").is_dir()
    ended = [shared().wait(pid) for pid in start_two(command, tmp_path, FSDP, ON_CPUS)]
    assert ended == [0, 0], [(tmp_path / f"rank{rank}" / "stderr").read_text() for rank in (0, 1)]

    assert "the training goes on after step" in (parts / "run.log").read_text()
    assert foreign_lines((tmp_path / "rank0" / "stderr").read_text()) == []

    expected = load_file(tmp_path / "one" / "checkpoint" / "model.safetensors")
    for folder in (both, parts):
        found = load_file(folder / "checkpoint" / "model.safetensors")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-3, msg=name)
        record = read_record(folder)
        assert record is not None
        assert (record.recovery["batch"], record.recovery["tokens"]) == (8, 6 * 8 * 16)
        assert record.recovery["outcome"] == "recovered"
        assert not (folder / "trainer").exists()
