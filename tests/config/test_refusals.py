"""Whatever is wrong on the command line is one line that names the key, exit code 2, and no file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from harness import SMALL_EVALUATION, SMALL_TASK, paragraphs, validated, write_corpus
from policyprune.config.registry import groups, options

Refusal = Callable[..., str]
CallMain = Callable[..., tuple[int, str]]
PG = ["optimizer=policy_gradient"]


@pytest.mark.parametrize(
    ("override", "bounds"),
    [
        ("budget.keep=2", "above 0 and at most 1"),
        ("budget.keep=0", "above 0 and at most 1"),
        ("budget.keep=nan", "above 0 and at most 1"),
        ("tuning.learning_rate=-0.1", "above 0"),
        ("tuning.learning_rate=inf", "finite and above 0"),
        ("tuning.passes=0", "at least 1"),
        ("importance.confidence=0.5", "above 0.5 and below 1"),
        ("task.test_fraction=1", "above 0 and below 1"),
        ("task.calibration.length=1", "at least 2"),
        ("task.test_documents=0", "at least 1"),
        ("evaluation.lengths=[64,1]", "at least 2"),
        ("evaluation.latency.repeats=-1", "at least 0"),
        ("evaluation.zero_shot.limit=0", "at least 1"),
        ("evaluation.zero_shot.num_fewshot=-1", "at least 0"),
        ("seed=-1", "at least 0"),
        ("seed=4294967296", "at least 0 and at most 4294967295"),
        (f"seed={2**64}", "at least 0 and at most 4294967295"),
        (f"task.calibration.seed={10**400}", "at least 0 and at most 4294967295"),
    ],
)
def test_number_out_of_range(refusal: Refusal, override: str, bounds: str) -> None:
    line = refusal(override)
    assert line.startswith(f"{override.partition('=')[0]}: ")
    assert bounds in line


@pytest.mark.parametrize(
    "override",
    [
        "budget.keep=abc",
        "seed=1.5",
        "force=maybe",
        "optimizer.rounds=many",
        "evaluation.fresh_process=3.5",
        "task.files=a.txt",
        "model.source=null",
        "evaluation.lengths=[long]",
        "budget=3",
    ],
)
def test_wrong_type(refusal: Refusal, override: str) -> None:
    key, _, value = override.partition("=")
    line = refusal(override)
    assert line.startswith(f"{key}")
    assert line.partition(": ")[2]
    assert value in line or key in ("task.files", "model.source", "evaluation.lengths")


@pytest.mark.parametrize(
    ("override", "key", "neighbour"),
    [
        ("budget.kep=1", "budget.kep", "keep"),
        ("++budget.kep=1", "budget.kep", "keep"),
        ("+optimizer.typo=1", "optimizer.typo", "sequences"),
        ("+foo=1", "foo", "budget"),
        ("foo=1", "foo", "budget"),
        ("+task.calibration.foo=3", "task.calibration.foo", "length"),
        ("+evaluation.latency.warmup=3", "evaluation.latency.warmup", "repeats"),
    ],
)
def test_unknown_key(refusal: Refusal, override: str, key: str, neighbour: str) -> None:
    line = refusal(override)
    assert line.startswith(f"{key}: unknown key, the choices are ")
    assert neighbour in line


def test_key_of_another_option(refusal: Refusal) -> None:
    assert refusal("optimizer=one_shot", "optimizer.steps=3").startswith("optimizer.steps: unknown key")


def test_key_that_a_preset_sets_of_another_option(refusal: Refusal) -> None:
    assert refusal("experiment=compress", "recovery=none") == (
        "recovery.seconds: experiment=compress sets it, and the chosen recovery has no such key; choose another one of "
        "the two"
    )


@pytest.mark.parametrize("group", groups())
def test_unknown_option_lists_the_options(refusal: Refusal, group: str) -> None:
    line = refusal(f"{group}=nonesuch")
    assert line == f"{group}: 'nonesuch' is not one of {', '.join(options(group))}"


@pytest.mark.parametrize(
    ("override", "choices"),
    [
        ("model.dtype=int8", "auto, float32, bfloat16, float16"),
        ("model.attn_implementation=fast", "auto, sdpa, eager, flash_attention_2, flex_attention"),
        ("model.device_map=best", "auto, balanced, balanced_low_0, sequential"),
        ("task.bos=maybe", "auto, none, text, window"),
        (
            "granularity.units=[attention,neuron]",
            "attention, query_head, ffn, attention_block, ffn_block, layer, hidden",
        ),
        ("budget.name=latency", "rate, params, flops"),
        ("budget.scope=local", "global, per_layer, uniform"),
        ("importance.mapping=tanh", "sigmoid_norm, norm, score_const"),
        ("importance.normalize=none", "per_layer, global"),
        ("optimizer.name=ppo", "levels"),
        ("evaluation.one_shot=[uniform]", "global, per_layer"),
        ("evaluation.zero_shot.tasks=[piqa,mmlu]", "piqa, hellaswag, winogrande, arc_easy, arc_challenge, boolq"),
        ("evaluation.zero_shot.source=disk", "auto, hub, embedded"),
        ("export.name=zip", "hf, onnx, gguf, none"),
        ("export.gguf_dtype=q4", "f32, f16, q8_0"),
    ],
)
def test_wrong_choice_lists_the_choices(refusal: Refusal, override: str, choices: str) -> None:
    line = refusal(override)
    assert line.startswith(f"{override.partition('=')[0]}: ")
    assert line.endswith(f"is not one of {choices}")


@pytest.mark.parametrize(
    ("override", "choices"),
    [
        ("optimizer.mask_per=token", "sequence, batch"),
        ("optimizer.score=true_score", "textbook, released, natural"),
        ("optimizer.baseline=critic", "none, moving_average, leave_one_out, residual"),
        ("optimizer.schedule=step", "constant, linear, cosine"),
        ("optimizer.projection=simplex", "cap, equality"),
        ("optimizer.progressive=3.5", ""),
    ],
)
def test_wrong_choice_of_an_optimizer(refusal: Refusal, override: str, choices: str) -> None:
    line = refusal("optimizer=policy_gradient", override)
    assert line.startswith(f"{override.partition('=')[0]}: ")
    assert line.endswith(f"is not one of {choices}" if choices else "")


def test_wrong_tracker_mode_lists_the_choices(refusal: Refusal) -> None:
    line = refusal("tracker=wandb", "tracker.mode=silent")
    assert line == "tracker.mode: 'silent' is not one of online, offline, disabled, shared"


@pytest.mark.parametrize("override", ["budget.keep", "budget.keep=[1", "budget.keep={a:", "budget.keep=0.8,0.9"])
def test_grammar_error_names_the_key(refusal: Refusal, override: str) -> None:
    assert "budget.keep" in refusal(override)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["task=text"], "task.source, task.files"),
        (["task=text", "task.files=[]"], "task.source, task.files"),
        (["task=wikitext2", "task.files=[a.txt]"], "task.source, task.files"),
        (["importance=wanda_sp", "task.calibration.count=64"], "importance.sequences"),
        (["task.calibration.count=64", "importance.sequences=65"], "importance.sequences"),
        (["optimizer=policy_gradient", "optimizer.masks=1"], "optimizer.masks"),
        (
            [
                "optimizer=policy_gradient",
                "optimizer.masks=1",
                "optimizer.baseline=none",
                "optimizer.divisor=masks_minus_one",
            ],
            "optimizer.masks",
        ),
        (["optimizer=policy_gradient", "optimizer.batch_size=5000"], "optimizer.batch_size"),
        (["optimizer=evolution", "optimizer.batch_size=5000"], "optimizer.batch_size"),
        (["optimizer=gumbel", "optimizer.batch_size=5000"], "optimizer.batch_size"),
        (["optimizer=evolution", "optimizer.parents=12"], "optimizer.parents"),
        (["optimizer=greedy"], "optimizer"),
        (["tuning=bias_compensation", "export=gguf", "evaluation.fresh_process=false"], "export"),
        (["importance=flap", "task.calibration.count=64"], "importance.sequences"),
        (["model.device_map=auto", "model.device=cpu"], "model.device"),
        (["granularity.units=[]"], "granularity.units"),
        (["granularity.units=[attention,layer]"], "granularity.units"),
        (["granularity=layer", "budget.scope=per_layer"], "budget.scope"),
        (["granularity=all", "budget.scope=uniform"], "budget.scope"),
        (["granularity=sublayer", "optimizer=kwon"], "optimizer"),
        (["granularity=all", "optimizer=straight_through"], "optimizer"),
        (["granularity=head", "optimizer=straight_through"], "optimizer.attention_rate"),
        (["granularity=hidden", "granularity.units=[hidden,ffn]"], "granularity.units"),
        (["granularity=hidden", "budget.scope=per_layer"], "budget.scope"),
        (["granularity=hidden", "budget=latency"], "budget"),
        (["granularity=hidden", "importance=wanda_sp"], "importance"),
        (["granularity=hidden", "importance=flap"], "importance"),
        (["granularity=hidden", "optimizer=kwon"], "optimizer"),
        (["granularity=hidden", "tuning=cg2", "budget=flops"], "tuning"),
        (["export=none"], "evaluation.fresh_process"),
        (["model=minilm_l6", "task=glue/sst2", "evaluation=zero_shot"], "evaluation.zero_shot.tasks"),
        (["importance=block_influence"], "importance"),
        (["recovery=distill", "model.device_map=auto"], "model.device_map"),
        (["recovery=distill", "recovery.task_loss=1"], "recovery.task_loss"),
        (["recovery=finetune", "recovery.seconds=0"], "recovery.seconds"),
        (["recovery=finetune", "recovery.task=c5"], "recovery.task"),
        (["model=minilm_l6", "task=glue/sst2", "recovery=distill", "recovery.task=c4"], "recovery.task"),
        (["recovery=finetune", "recovery.trained=heads"], "recovery.trained"),
        (["importance=block_influence", "granularity=sublayer"], "importance"),
        (["importance=block_influence", "granularity=all"], "importance"),
        (["importance=block_influence", "granularity=layer", "task.calibration.count=64"], "importance.sequences"),
        (
            [
                "optimizer=policy_gradient",
                "optimizer.baseline=residual",
                "optimizer.masks=1",
                "optimizer.mask_per=batch",
            ],
            "optimizer.masks",
        ),
    ],
)
def test_impossible_combination(refusal: Refusal, overrides: list[str], key: str) -> None:
    assert refusal(*overrides).startswith(f"{key}: ")


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=policy_gradient", "optimizer.masks=1", "optimizer.baseline=none"],
        ["task.calibration.count=64", "importance=magnitude"],
        ["task.calibration.count=64"],
        ["model.device_map=auto", "model.device=cuda"],
        ["export=none", "evaluation.fresh_process=false"],
        ["export=none", "evaluation=none"],
        ["optimizer=one_shot", "importance=wanda_sp", "task.calibration.count=128"],
        ["optimizer=policy_gradient", "granularity.units=[attention_block,ffn_block,layer]"],
        ["granularity=channel", "granularity.align=64", "budget.scope=uniform"],
        ["granularity=layer", "importance=block_influence"],
        ["evaluation=zero_shot", "evaluation.zero_shot.tasks=[boolq]", "evaluation.lengths=[]"],
        ["model=minilm_l6", "task=glue/sst2", "evaluation=zero_shot", "evaluation.zero_shot.tasks=[]"],
        ["granularity=head_channel", "optimizer=kwon", "budget=latency"],
        ["granularity=hidden"],
        ["granularity=hidden", "importance=magnitude", "granularity.align=8"],
        ["granularity=hidden", "optimizer=ppo"],
    ],
)
def test_neighbours_of_impossible_combinations_are_possible(overrides: list[str]) -> None:
    assert validated(*overrides)


@pytest.mark.parametrize("word", ["prune", "sweeep", "budget"])
def test_unknown_verb_lists_the_verbs(refusal: Refusal, word: str) -> None:
    line = refusal(word)
    assert repr(word) in line
    assert "the verbs are run" in line


@pytest.fixture
def doomed(call_main: CallMain, tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run for real, on the tiny model unless `model.source` is given."""
    corpus = write_corpus(tmp_path / "corpus.txt", paragraphs(60))

    def call(*overrides: str) -> tuple[int, str]:
        model = [] if any("model.source" in override for override in overrides) else [f"model.source={tiny_checkpoint}"]
        return call_main(*model, "task=text", f"task.files=[{corpus}]", *SMALL_TASK, *SMALL_EVALUATION, *overrides)

    return call


FOUND_LATER = [
    (["model.source=./nowhere"], "model.source"),
    (["model.source=pkg://nosuchpackage/model"], "model.source"),
    (["task.files=[./nowhere.txt]"], "task.files"),
    (["granularity=head", "budget=params", "budget.keep=0.05"], "budget.keep"),
    (["model.device=cuda:99"], "model.device"),
    (["model.device=meta"], "model.device"),
    (["model.device=tpu"], "model.device"),
    (["model.device=''"], "model.device"),
    (["evaluation.lengths=[32,129]"], "evaluation.lengths"),
    (["recovery=distill", "recovery.length=129"], "recovery.length"),
    (["recovery=distill", "recovery.held_out=10000"], "recovery.held_out"),
]


@pytest.mark.parametrize(("overrides", "key"), FOUND_LATER)
def test_what_is_found_later_is_one_line_too(
    doomed: Callable[..., tuple[int, str]], overrides: list[str], key: str
) -> None:
    status, error = doomed(*overrides)
    assert status == 2
    lines = [line for line in error.splitlines() if line.strip()]
    assert lines[-1].startswith(f"policyprune: {key}: ")
    assert len(lines) == 1, error


@pytest.mark.parametrize(("overrides", "key"), FOUND_LATER)
def test_what_is_found_later_leaves_no_files(
    doomed: Callable[..., tuple[int, str]], overrides: list[str], key: str
) -> None:
    status, _ = doomed(*overrides)
    assert status == 2
    assert not list(Path().rglob("*"))


def test_unmeetable_budget_names_what_can_be_met(doomed: Callable[..., tuple[int, str]]) -> None:
    impossible = ["granularity=head", "budget=params"]
    _, error = doomed(*impossible, "budget.keep=0.05")
    least = float(error.rstrip().rpartition("at least ")[2].split()[0])
    status, error = doomed(*impossible, f"budget.keep={least + 0.01}", "optimizer=one_shot", "evaluation=none")
    assert status == 0, error


@pytest.mark.parametrize("override", ["task.text_columns=[]", "task.text_columns=[a,b,c]", "task.test_splits=[]"])
def test_labelled_examples_need_text_and_a_test(refusal: Refusal, override: str) -> None:
    assert refusal("task=glue/sst2", override).startswith(f"{override.partition('=')[0]}: ")
