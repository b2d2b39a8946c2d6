"""The Python API on tiny models: it prunes as the command line does, and what it gives can be used at once."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import policyprune as pp
from encoders import make_encoder
from forking import forked
from harness import SMALL_SEARCH, paragraphs, small_run, validated, write_corpus
from policyprune.config.schema import Optimizer
from policyprune.pruning.budget.selection import select
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State
from policyprune.tasks import build

TEXTS = paragraphs(40)
OTHER = paragraphs(20, seed=1)
QUICK = {"length": 16, "method": "straight_through", "optimizer": pp.StraightThrough(steps=3, batch_size=4)}


@pytest.fixture(scope="module")
def llama(tiny_llama: Any, tiny_tokenizer: Any) -> Any:
    return tiny_llama(vocab_size=len(tiny_tokenizer))


@pytest.fixture(scope="module")
def result(llama: Any, tiny_tokenizer: Any) -> pp.PruningResult:
    """One pruning that most tests look at."""
    return pp.prune(llama, TEXTS, tiny_tokenizer, keep=0.6, **QUICK)


def ids(count: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(5, 250, (count, length), generator=torch.Generator().manual_seed(seed))


def examples(count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Labelled sentences of 4 to 12 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 13, (count,), generator=generator)
    mask = (torch.arange(12) < lengths[:, None]).long()
    labels = torch.randint(0, 2, (count,), generator=generator)
    return {"input_ids": ids(count, 12, seed) * mask, "attention_mask": mask, "labels": labels}


def test_the_package_is_imported_without_torch_and_hydra() -> None:
    code = "import sys, policyprune as pp; pp.__version__, pp.PolicyGradient(steps=3), pp.UsageError, dir(pp); "
    code += "print(sorted({'torch', 'hydra', 'transformers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_pruning_uses_no_hydra(llama: Any) -> None:
    code = "import sys, policyprune.api; print('hydra' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_every_name_is_there() -> None:
    assert set(pp.__all__) <= set(dir(pp))
    for name in pp.__all__:
        assert getattr(pp, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'prunes'"):
        pp.prunes  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["method=policy_gradient", "optimizer.masks=2"],
        ["method=ours_forward", "budget=params"],
        ["method=flap"],
        ["method=llm_pruner", "budget.keep=0.6"],
        ["optimizer=ppo", "optimizer.iterations=2", "tuning=none"],
        ["granularity=layer", "budget.keep=0.67"],
        ["budget=flops", "budget.scope=per_layer", "seed=3"],
    ],
    ids=" ".join,
)
def test_the_command_line_finds_the_same_mask(overrides: list[str], tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Model, data, choices and seed alike: the mask files are equal, byte for byte."""
    corpus = write_corpus(tmp_path / "stories.txt", paragraphs(150))
    steps = SMALL_SEARCH if "method=policy_gradient" in overrides else []
    arguments = small_run(tiny_checkpoint, corpus, *overrides, *steps, "evaluation=none", "tuning.sequences=16")
    if any(own in ("method=llm_pruner", "tuning=none") for own in overrides):
        arguments.remove("tuning.sequences=16")
    done = forked(*arguments, f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = validated(*arguments)
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    task = build(config.task, tokenizer, model.eval())
    found = pp.prune(
        model,
        task.ids,
        keep=config.budget.keep,
        method=config.method,
        budget=config.budget.name,
        scope=config.budget.scope,
        granularity=config.granularity,
        optimizer=config.optimizer,
        importance=config.importance,
        tuning=config.tuning,
        seed=config.seed,
    )
    found.save(tmp_path / "out", tokenizer)
    assert (tmp_path / "out" / "mask.safetensors").read_bytes() == (tmp_path / "run" / "mask.safetensors").read_bytes()
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "run" / "checkpoint" / name).read_bytes()


def test_the_smaller_model_is_used_at_once(result: pp.PruningResult, llama: Any, tiny_tokenizer: Any) -> None:
    inputs = tiny_tokenizer("The quick brown fox", return_tensors="pt")
    out = result.model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert out.shape == (1, inputs["input_ids"].shape[1] + 5)
    assert sum(p.numel() for p in result.model.parameters()) < sum(p.numel() for p in llama.parameters())


def test_the_smaller_model_is_the_masked_one_without_a_tuning(llama: Any, tiny_tokenizer: Any) -> None:
    prunable = pp.PrunableModel(llama)
    found = pp.prune(prunable, TEXTS, tiny_tokenizer, tuning="none", **QUICK)
    assert found.prunable is prunable
    batch = ids(2, 12)
    with prunable.masked(found.mask) as masked:
        expected = masked(batch).logits
    for smaller in (found.model, prunable.shrunk(found.mask)):
        torch.testing.assert_close(smaller(batch).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_pruning_leaves_the_dense_model_and_the_generators_as_they_were(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    model = tiny_llama(vocab_size=len(tiny_tokenizer)).train().requires_grad_(True)
    model.lm_head.weight.requires_grad_(False)
    model.model.layers[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    found = pp.prune(model, TEXTS, tiny_tokenizer, **QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [name for name, own in model.named_parameters() if not own.requires_grad] == ["lm_head.weight"]
    assert all(own.grad is None for own in model.parameters())
    assert not found.model.training
    loss = found.model(input_ids=ids(2, 8), labels=ids(2, 8)).loss
    loss.backward()
    assert found.model.model.layers[0].mlp.down_proj.weight.grad is not None


def test_the_report_has_the_numbers_and_prints_the_main_ones(result: pp.PruningResult) -> None:
    report = result.report
    assert [row["step"] for row in report.steps] == [1, 2, 3]
    assert {"loss", "keep"} <= set(report.steps[0])
    assert (report.forwards, report.backwards) == (3, 3)
    assert report.sequences * 16 == report.tokens
    assert report.protocol["bos"] in (True, False)
    kept = {(row["layer"], row["kind"]): row["kept"] for row in report.keep_rates}
    assert sum(kept.values()) == int(result.mask.sum())
    assert len(report.tuning) == len([count for count in kept.values() if count])
    assert report.smaller["block_macs"] < report.dense["block_macs"]
    lines = str(report).splitlines()
    assert lines[0].startswith("straight_through: keep 0.6 by rate, ")
    assert [line.split()[0] for line in lines[1:]] == ["attention", "ffn", "parameters", "block", "block"]


def test_what_is_saved_loads_with_transformers_alone(
    result: pp.PruningResult, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    result.save(tmp_path / "out", tiny_tokenizer)
    result.save(str(tmp_path / "out"), tiny_tokenizer)  # what we wrote may be written again
    code = f"""
import sys
sys.modules["policyprune"] = None
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "out")!r}, trust_remote_code=True)
torch.save(model(torch.arange(12)[None]).logits, {str(tmp_path / "logits.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    expected = result.model(torch.arange(12)[None]).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("my own")
    with pytest.raises(pp.UsageError, match="holds other files, name another folder"):
        result.save(tmp_path / "mine")


def test_a_plan_makes_the_smaller_model_again(result: pp.PruningResult, llama: Any, tmp_path: Path) -> None:
    result.save(tmp_path)
    plan = pp.load_plan(tmp_path / "plan.json")
    assert torch.equal(plan.mask, result.mask)
    again = plan.apply(llama)
    torch.testing.assert_close(again(torch.arange(12)[None]).logits, result.model(torch.arange(12)[None]).logits)
    assert json.loads((tmp_path / "plan.json").read_text())["base"]["source"] == "in memory"


def test_perplexity_of_texts_and_of_ids(result: pp.PruningResult, llama: Any, tiny_tokenizer: Any) -> None:
    found = pp.evaluate(llama, OTHER, tiny_tokenizer, length=32, bos=False)
    tokens = torch.cat(
        [torch.tensor(tiny_tokenizer(f"{text}\n\n", add_special_tokens=False).input_ids) for text in OTHER]
    )
    windows = tokens[: len(tokens) // 32 * 32].view(-1, 32)
    with torch.no_grad():
        expected = float(llama(windows, labels=windows).loss)
    assert found.loss == pytest.approx(expected, rel=1e-5)
    assert found.perplexity == pytest.approx(torch.tensor(expected).exp().item(), rel=1e-4)
    assert (found.sequences, found.tokens, found.bos) == (len(windows), windows.numel(), False)
    assert pp.evaluate(llama, windows).loss == pytest.approx(found.loss)
    assert pp.evaluate(llama, tokens.tolist() and [tokens.tolist()], length=32).loss == pytest.approx(found.loss)
    assert str(found).startswith("perplexity ")
    assert pp.evaluate(result.model, OTHER, tiny_tokenizer, length=32).loss != found.loss


def test_bos_leads_where_it_is_wanted(llama: Any, tiny_tokenizer: Any) -> None:
    found = pp.prune(llama, TEXTS, tiny_tokenizer, method="flap", length=16, bos=True)
    assert found.report.protocol == {"bos": True}
    assert "bos_measured" in pp.prune(llama, TEXTS, tiny_tokenizer, method="flap", length=16).report.protocol
    assert pp.evaluate(llama, OTHER, tiny_tokenizer, length=16, bos=True).bos is True


@pytest.mark.parametrize("form", ["dict", "batches"])
def test_an_encoder_by_labelled_examples(form: str) -> None:
    model, data = make_encoder(), examples(48)
    batches = [{name: own[i : i + 8] for name, own in data.items()} for i in range(0, 48, 8)]
    found = pp.prune(
        model, data if form == "dict" else batches, keep=0.6, method="gpruner", optimizer=pp.PPO(iterations=2)
    )
    assert found.report.smaller["block_macs"] < found.report.dense["block_macs"]
    dense, smaller = pp.evaluate(model, data), pp.evaluate(found.model, data)
    with torch.no_grad():
        expected = model(**data)
    assert dense.loss == pytest.approx(float(expected.loss), rel=1e-5)
    assert dense.accuracy == pytest.approx(float((expected.logits.argmax(-1) == data["labels"]).double().mean()))
    assert dense.perplexity is None
    assert smaller.sequences == 48


def test_a_task_of_ones_own(llama: Any) -> None:
    class LastToken:
        """The loss of the last token alone."""

        lengths = torch.full((24,), 10)

        def inputs(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"input_ids": ids(24, 10)[rows]}

        def loss(self, model: Any, rows: torch.Tensor) -> torch.Tensor:
            batch = self.inputs(rows)["input_ids"]
            return torch.nn.functional.cross_entropy(model(batch).logits[:, -2], batch[:, -1], reduction="none")

    found = pp.prune(llama, LastToken(), method="policy_gradient", optimizer=pp.PolicyGradient(steps=2, batch_size=4))
    assert found.report.sequences == 24
    assert pp.evaluate(found.model, LastToken()).perplexity is None


def test_the_units_are_the_callers(llama: Any, tiny_tokenizer: Any) -> None:
    only = pp.PrunableModel(llama, units=["ffn"], spared=(0.34, 0))
    assert {(group.layer, group.kind) for group in only.units.groups} == {(1, "ffn"), (2, "ffn")}
    found = pp.prune(only, TEXTS, tiny_tokenizer, keep=0.8, **QUICK)
    assert found.model.config.num_hidden_layers == 3
    assert int(found.mask.sum()) == round(0.8 * 3 * 48) - 48


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"kep": 0.5}, "kep: unknown, the choices are budget, scope,"),
        ({"keep": 1.5}, "keep: 1.5 is out of range, it must be above 0 and at most 1"),
        ({"keep": "most"}, "keep: 'most' is not a number"),
        ({"optimizer": pp.Levels(widths=0.5)}, "optimizer.widths: 0.5 is not a list, such as"),
        ({"method": "best"}, "method: 'best' is not one of block_influence,"),
        ({"budget": "watts"}, "budget: 'watts' is not one of flops,"),
        ({"budget": pp.Budget(name="rate", keep=0.5)}, "keep: 0.8, but the budget says 0.5"),
        ({"scope": "layer"}, "scope: 'layer' is not one of global, per_layer, uniform"),
        ({"granularity": "heads"}, "granularity: 'heads' is not one of all,"),
        ({"granularity": ["heads"]}, "granularity.units: 'heads' is not one of attention,"),
        ({"optimizer": pp.PolicyGradient(steps=0)}, "optimizer.steps: 0 is out of range, it must be at least 1"),
        ({"optimizer": pp.PolicyGradient(baseline="mean")}, "optimizer.baseline: 'mean' is not one of none,"),
        ({"optimizer": pp.PolicyGradient(masks=1)}, "optimizer.masks: 1 leaves nothing to leave out"),
        ({"granularity": []}, "granularity.units: empty"),
        ({"granularity": "layer", "scope": "uniform"}, "scope: uniform asks every layer to keep its share"),
        (
            {"importance": "block_influence"},
            "importance: block_influence scores whole layers, granularity='head_channel'",
        ),
        ({"importance": pp.Taylor(sequences=10**6)}, "importance.sequences: 1000000 is more than the "),
        (
            {"calibration": ids(4, 16), "optimizer": "gumbel"},
            "optimizer.batch_size: 8 is more than the 4 sequences of calibration",
        ),
        (
            {"calibration": ids(1, 16), "optimizer": "ppo"},
            "calibration: 1 sequence cannot be split, optimizer='ppo' needs",
        ),
        ({"optimizer": pp.FromRun(folder="nowhere")}, "optimizer.folder: 'nowhere/mask.safetensors' cannot be read"),
        ({"length": 500}, "length: 500 is more than the 128 positions of this model"),
        ({"length": 100_000}, "length: the data are shorter than one sequence of 100000 tokens"),
        ({"seed": -1}, "seed: -1 is out of range"),
        ({"tokenizer": None}, "calibration: texts need a tokenizer"),
        ({"calibration": 3}, "calibration: int is neither texts nor token ids nor batches"),
        ({"calibration": [{"input_ids": ids(2, 4)}]}, "calibration: a batch has no 'labels', only input_ids"),
        ({"calibration": ids(2, 4).float()}, "calibration: a tensor of token ids has the shape (N, L)"),
        ({"calibration": []}, "length: the data are shorter than one sequence of 128 tokens"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(
    choices: dict[str, Any], message: str, llama: Any, tiny_tokenizer: Any
) -> None:
    with pytest.raises(pp.UsageError) as refused:
        pp.prune(llama, **{"calibration": TEXTS, "tokenizer": tiny_tokenizer, **choices})
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_a_method_that_spares_layers_is_refused_for_units_that_do_not(llama: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(pp.UsageError, match="spared"):
        pp.prune(pp.PrunableModel(llama), TEXTS, tiny_tokenizer, method="llm_pruner")
    spared = pp.PrunableModel(llama, spared=(0.125, 0.0625))
    pp.prune(spared, TEXTS, tiny_tokenizer, keep=0.9, method="llm_pruner", length=16)


def test_an_optimizer_of_ones_own(llama: Any, tiny_tokenizer: Any) -> None:
    """It needs no entry anywhere."""

    @dataclass(kw_only=True)
    class Greediest(Optimizer):
        """The most probable units that fit."""

        name: str = "greediest"

        def search(self, problem: Problem, report: Report, state: State = FORGETFUL) -> Found:
            return Found(select(problem.start.cpu().double(), problem.budget.to(torch.device("cpu"))), problem.start, 0)

    found = pp.prune(llama, TEXTS, tiny_tokenizer, optimizer=Greediest(), tuning="none", length=16)
    assert str(found.report).startswith("obs, greediest, tuning none: keep 0.8")


def test_a_budget_of_time(llama: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLICYPRUNE_CACHE", str(tmp_path))
    budget = pp.LatencyBudget(repeats=1, batch_size=1, sequence_length=8)
    found = pp.prune(llama, TEXTS, tiny_tokenizer, budget=budget, method="taylor", length=16, keep=0.9)
    assert found.report.config.granularity.align == 8
    (table,) = (tmp_path / "latency").iterdir()
    assert json.loads(table.read_text())["key"]["batch_size"] == 1
    kept = [row["kept"] for row in found.report.keep_rates if row["kind"] == "ffn"]
    assert all(count % 8 == 0 for count in kept)


def test_a_loss_that_is_no_number_ends_the_search(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    model = tiny_llama(vocab_size=len(tiny_tokenizer))
    model.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(pp.RunError, match="112 masks had a loss that is NaN or infinite, more than 100"):
        pp.prune(model, TEXTS, tiny_tokenizer, method="policy_gradient", length=16)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"bos": "no"}, "bos: 'no' is not one of True, False, None"),
        ({"length": 0}, "length: 0 is out of range, it must be at least 2"),
        ({"length": 16.5}, "length: 16.5 is no whole number"),
        ({"seed": "x"}, "seed: 'x' is no whole number"),
        ({"tokenizer": "tok"}, "tokenizer: 'tok' is no tokenizer"),
        ({"model": "llama"}, "model: 'llama' is no transformers model"),
        ({"model": torch.nn.Linear(3, 3)}, "model: Linear is no transformers model"),
        ({"method": 3}, "method: 3 is neither options nor a name|method: 3 is neither a name"),
        ({"importance": pp.PolicyGradient()}, "importance: PolicyGradient.* is neither"),
        ({"optimizer": "from_run"}, r"optimizer: 'from_run' needs its folder, give pp.FromRun\(folder=...\)"),
        ({"calibration": [5] * 500}, "calibration: a list of int"),
        ({"calibration": [b"a fine"] * 50}, "calibration: a list of bytes"),
        ({"calibration": ids(64, 16) + 10**6}, "calibration: token ids from"),
        ({"calibration": ids(64, 16), "bos": True}, "bos: True, but token ids are taken as they are"),
        (
            {"calibration": {"input_ids": ids(8, 16), "labels": torch.zeros(8)}},
            "calibration: a label for each example, but",
        ),
        (
            {"calibration": {"input_ids": ids(8, 16), "labels": ids(6, 16)}},
            "calibration: as many of all are needed",
        ),
    ],
)
def test_what_is_of_another_type_is_refused_in_one_line(
    arguments: dict[str, Any], told: str, llama: Any, tiny_tokenizer: Any
) -> None:
    given = {"model": llama, "calibration": paragraphs(60), "tokenizer": tiny_tokenizer, **arguments}
    with pytest.raises(pp.UsageError, match=told):
        pp.prune(**given)


def test_examples_that_do_not_fit_a_classifier_are_refused() -> None:
    model = make_encoder()
    good = examples(16)
    for data, told in (
        (paragraphs(40), "texts and token ids are for language models"),
        (good["input_ids"], "texts and token ids are for language models"),
        ({**good, "foo": torch.zeros(16, 2)}, "'foo' is no argument of"),
        ({**good, "labels": torch.full((16,), 7)}, "labels from 7 to 7, this model has classes 0 to 1"),
    ):
        with pytest.raises(pp.UsageError, match=told):
            pp.evaluate(model, data)


def test_masks_and_units_are_checked(llama: Any) -> None:
    prunable = pp.PrunableModel(llama)
    count = prunable.units.n
    for mask in (torch.ones(2 * count), torch.full((count,), 0.5), [True] * count):
        with pytest.raises(pp.UsageError, match="mask: "):
            prunable.shrunk(mask)  # type: ignore[arg-type]
        with pytest.raises(pp.UsageError, match="mask: "), prunable.masked(mask):  # type: ignore[arg-type]
            pass
    for wrong in ({"units": ["fnn"]}, {"units": []}, {"units": "fnn"}, {"spared": 0.1}, {"spared": (-1, 0)}):
        with pytest.raises(pp.UsageError, match=f"^{next(iter(wrong))}: "):
            pp.PrunableModel(llama, **wrong)


def test_what_cannot_be_read_or_written_is_called_as_the_arguments_are(
    result: pp.PruningResult, llama: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no plan")
    with pytest.raises(pp.UsageError, match=r"^path: .* is no plan of policyprune"):
        pp.load_plan(tmp_path / "file")
    with pytest.raises(pp.UsageError, match=r"^folder: .* is a file"):
        result.save(tmp_path / "file")
    with pytest.raises(pp.UsageError, match=r"^model: the plan is for"):
        result.plan.apply(result.model)


def test_a_loss_of_ones_own_is_one_for_each_sequence(llama: Any) -> None:
    class Mean:
        lengths = torch.full((16,), 12)

        def inputs(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"input_ids": ids(16, 12)[rows]}

        def loss(self, model: Any, rows: torch.Tensor) -> torch.Tensor:
            return model(**self.inputs(rows)).logits.mean()

    with pytest.raises(pp.UsageError, match=r"calibration.loss: it gave \(\) for"):
        pp.prune(llama, Mean())


@pytest.mark.parametrize(
    "choices", [{"method": "straight_through"}, {"method": "taylor"}, {"importance": "random", "optimizer": "gumbel"}]
)
def test_a_loss_without_gradients_is_refused_where_they_are_needed(choices: dict[str, Any], llama: Any) -> None:
    class Value:
        lengths = torch.full((16,), 12)

        def inputs(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"input_ids": ids(16, 12)[rows]}

        @torch.no_grad()
        def loss(self, model: Any, rows: torch.Tensor) -> torch.Tensor:
            return model(**self.inputs(rows)).logits.mean((1, 2))

    with pytest.raises(pp.UsageError, match=r"^calibration.loss: .* no gradients, .* method='ours_forward'"):
        pp.prune(llama, Value(), **choices)
    forward = pp.PolicyGradient(steps=2, batch_size=4)
    assert pp.prune(llama, Value(), method="policy_gradient", optimizer=forward).report.backwards == 0
