"""Every option file in conf/ composes into a valid config."""

import pytest
import yaml

from harness import composed, validated
from policyprune.config.options import conf_dir, groups, options
from policyprune.config.schema import SCHEMAS, Config, PolicyGradient

NEEDED = {
    ("task", "text"): ["task.files=[some.txt]"],
    **{("export", name): ["evaluation.fresh_process=false"] for name in ("none", "onnx", "gguf")},
    ("optimizer", "greedy"): ["granularity=head"],
    ("optimizer", "given"): ["optimizer.folder=outputs/some"],
    ("importance", "block_influence"): ["granularity=layer"],
}
EVERY_OPTION = [(group, option) for group in groups() for option in options(group)]


@pytest.mark.parametrize(("group", "option"), EVERY_OPTION)
def test_every_option_settles(group: str, option: str) -> None:
    config = validated(f"{group}={option}", *NEEDED.get((group, option), []))
    assert isinstance(config, Config)
    if group == "method":
        assert config.method == option
    elif group != "experiment":
        assert option.startswith(getattr(config, group).name)


def test_every_folder_of_conf_is_a_group_but_the_shared_defaults() -> None:
    folders = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    assert set(groups()) == folders - {"base", "hydra"}
    assert {"model", "task", "granularity", "budget", "optimizer"} <= set(groups())


def test_schemas_and_shared_defaults_are_no_options() -> None:
    shown = {option for group in groups() for option in options(group)}
    assert not shown & {"base", "schema", "language_modeling"}
    assert not set(groups()) & {"base", "schema"}
    assert SCHEMAS


def test_every_group_is_in_the_defaults_list() -> None:
    defaults = yaml.safe_load((conf_dir() / "config.yaml").read_text())["defaults"]
    named = {next(iter(entry)) for entry in defaults if isinstance(entry, dict)}
    assert named == set(groups())


def test_no_option_file_names_python_code() -> None:
    files = list(conf_dir().rglob("*.yaml"))
    assert files
    assert not [path for path in files if "_target_" in path.read_text(encoding="utf-8")]


def test_an_experiment_keeps_its_scalars_and_the_command_line_wins() -> None:
    assert validated("experiment=demo").evaluation.lengths == [128, 1024]
    assert validated("experiment=demo", "evaluation.lengths=[64]").evaluation.lengths == [64]
    assert validated("experiment=demo", "optimizer=one_shot").optimizer.name == "one_shot"


def test_an_option_built_on_another_changes_what_it_names_alone() -> None:
    paper = validated("optimizer=policy_gradient_paper").optimizer
    released = validated("optimizer=policy_gradient_released").optimizer
    assert isinstance(paper, PolicyGradient)
    assert isinstance(released, PolicyGradient)
    changed = {key for key, value in vars(paper).items() if getattr(released, key) != value}
    assert changed == {"score", "window_update", "schedule"}
    assert (paper.steps, paper.masks, paper.baseline) == (15000, 2, "moving_average")


def test_the_calibration_seed_follows_the_seed() -> None:
    assert composed("seed=7").task.calibration.seed == 7
    assert composed("seed=7", "task.calibration.seed=3").task.calibration.seed == 3
