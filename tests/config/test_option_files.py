"""Every option file in conf/ composes into a valid config."""

import pytest
import yaml

from harness import composed, validated
from policyprune.config import registry
from policyprune.config.registry import conf_dir, groups, options
from policyprune.config.schema import Config
from policyprune.config.validate import fingerprint, run_label
from policyprune.errors import UsageError
from policyprune.pruning.optimizers.policy_gradient import PolicyGradient

NEEDED = {
    ("task", "text"): ["task.files=[some.txt]"],
    ("task", "generated"): ["task.test_task=wikipedia"],
    ("task", "mixture"): ["task.parts=[wikipedia,c4]"],
    ("task", "chat"): ["task.files=[some.jsonl]"],
    **{("export", name): ["evaluation.fresh_process=false"] for name in ("none", "onnx", "gguf")},
    ("optimizer", "greedy"): ["granularity=head"],
    ("optimizer", "from_run"): ["optimizer.folder=outputs/some"],
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


def test_every_folder_of_conf_and_of_the_registry_is_a_group() -> None:
    folders = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    assert set(groups()) == (folders | set(registry.OPTIONS)) - {"hydra"}
    assert {"model", "task", "granularity", "budget", "optimizer"} <= set(groups())


def test_schemas_are_no_options() -> None:
    shown = {option for group in groups() for option in options(group)}
    assert not shown & {"schema", "language_modeling"}
    assert "schema" not in groups()


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


@pytest.mark.parametrize(
    "more", [[], ["model=llama2_7b", "task=c4"], ["model=minilm_l6", "task=glue/sst2", "task.origin=hub"]]
)
def test_compress_is_for_any_model_and_the_time_is_one_key(more: list[str]) -> None:
    config = validated("experiment=compress", *more)
    assert (config.method, config.budget.keep, config.recovery.name) == ("ours", 0.5, "distill")
    assert config.recovery.limits == (None, None, 600)  # type: ignore[attr-defined]
    assert config.export.formats == ["hf"]
    assert config.evaluation.fresh_process
    changed = validated("experiment=compress", "recovery=lora", "recovery.seconds=60", "method=flap", *more)
    assert (changed.method, changed.recovery.name, changed.recovery.limits[2]) == ("flap", "lora", 60)  # type: ignore[attr-defined]


def test_an_option_built_on_another_changes_what_it_names_alone() -> None:
    paper = validated("optimizer=policy_gradient_paper").optimizer
    released = validated("optimizer=policy_gradient_released").optimizer
    assert isinstance(paper, PolicyGradient)
    assert isinstance(released, PolicyGradient)
    changed = {key for key, value in vars(paper).items() if getattr(released, key) != value}
    assert changed == {"score", "window_update", "schedule"}
    assert (paper.steps, paper.masks, paper.baseline) == (15000, 2, "moving_average")


def test_the_calibration_seed_is_that_of_the_run_unless_it_is_given() -> None:
    assert validated("seed=7").task.calibration.seed == 7  # type: ignore[attr-defined]
    assert validated("seed=7", "task.calibration.seed=3").task.calibration.seed == 3  # type: ignore[attr-defined]


def test_null_sequences_are_all_there_are() -> None:
    config = validated("method=flap", "task.calibration.count=77")
    assert (config.importance.sequences, config.tuning.sequences) == (77, 77)  # type: ignore[attr-defined]
    assert run_label(composed("method=flap")) == run_label(composed("method=flap", "tuning.sequences=4096"))


def test_the_trackers_mode_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert validated("tracker=wandb").tracker.mode == "offline"  # type: ignore[attr-defined]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert validated("tracker=wandb").tracker.mode == "disabled"  # type: ignore[attr-defined]
    assert validated("tracker=wandb", "tracker.mode=online").tracker.mode == "online"  # type: ignore[attr-defined]
    monkeypatch.setenv("WANDB_MODE", "loud")
    with pytest.raises(UsageError, match=r"^tracker\.mode: 'loud' is not one of online, offline"):
        validated("tracker=wandb")


def test_the_default_is_the_method_that_is_recommended() -> None:
    assert fingerprint(validated()) == fingerprint(validated("method=ours"))
    assert validated().method == "ours"
    assert run_label(composed()) == run_label(composed("method=ours"))


@pytest.mark.parametrize("part", ["importance=wanda_sp", "optimizer=ppo", "tuning=none", "granularity=all"])
def test_with_another_part_it_is_no_longer_called_so(part: str) -> None:
    assert validated(part).method is None


@pytest.mark.parametrize("granularity", options("granularity"))
@pytest.mark.parametrize("keep", ["0.5", "0.8"])
def test_every_granularity_goes_with_the_default(granularity: str, keep: str) -> None:
    assert validated(f"granularity={granularity}", f"budget.keep={keep}").granularity.name == granularity


def test_a_latency_budget_aligns_widths_unless_it_is_told_otherwise() -> None:
    assert validated("budget=latency").granularity.align == 8
    assert validated("budget=latency", "granularity=channel").granularity.align == 8
    assert validated("budget=latency", "granularity.align=32").granularity.align == 32
    assert validated("budget=latency", "granularity.align=null").granularity.align is None
    assert validated("budget=rate").granularity.align is None
