"""What makes two runs the same run."""

import subprocess
import sys

import pytest

from harness import clean_environment, composed, validated
from policyprune.config.validate import fingerprint, run_label


@pytest.mark.parametrize(
    "override",
    ["seed=1", "budget.keep=0.7", "optimizer.steps=33", "model.revision=abc", "evaluation.lengths=[64]", "export=none"],
)
def test_fingerprint_changes_with_what_changes_the_result(override: str) -> None:
    rest = ["evaluation.fresh_process=false"]
    assert fingerprint(validated(override, *rest)) != fingerprint(validated(*rest))


@pytest.mark.parametrize("override", ["force=true", "tracker=wandb", "hydra.run.dir=elsewhere"])
def test_fingerprint_ignores_what_does_not(override: str) -> None:
    assert fingerprint(validated(override)) == fingerprint(validated())
    assert run_label(composed(override)) == run_label(composed())


def test_fingerprint_is_the_same_in_another_process() -> None:
    script = (
        "from harness import composed, validated\n"
        "from policyprune.config.validate import fingerprint, run_label\n"
        "print(fingerprint(validated('seed=3')), run_label(composed('seed=3')))"
    )
    path = next(entry for entry in sys.path if entry.endswith("tests"))
    variables = clean_environment(PYTHONPATH=path, PYTHONHASHSEED="7")
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [fingerprint(validated("seed=3")), run_label(composed("seed=3"))]


def test_run_label_says_the_axes_and_tells_apart_what_it_does_not_say() -> None:
    label = run_label(composed("budget.keep=0.75", "seed=4"))
    assert label.startswith("smollm2_135m-wikipedia-head_channel-rate0.75-ours-s4-")
    other = run_label(composed("budget.keep=0.75", "seed=4", "optimizer=ppo"))
    assert other.startswith("smollm2_135m-wikipedia-head_channel-rate0.75-ppo-s4-")
    assert label != run_label(composed("budget.keep=0.75", "seed=4", "optimizer.steps=33"))


def test_run_label_names_the_method() -> None:
    config = composed("method=flap", "budget.keep=0.75")
    assert run_label(config).startswith("smollm2_135m-wikipedia-head_channel-rate0.75-flap-s0-")
    config.method = "K = 2"
    assert "-K_2-s0-" in run_label(config)


def test_run_label_is_one_folder_name() -> None:
    assert "/" not in run_label(composed("model.name=owner/model"))
