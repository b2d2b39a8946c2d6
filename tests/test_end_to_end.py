"""Whole runs through the console command, on a tiny random model and a text written here."""

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from forking import forked
from harness import (
    POLICY_GRADIENT,
    SMALL_EVALUATION,
    SMALL_SEARCH,
    composed,
    console,
    foreign_lines,
    paragraphs,
    small_run,
    write_corpus,
)
from policyprune.config.validate import run_label
from policyprune.models.adapter import adapt
from policyprune.pruning.mask_file import load_mask
from policyprune.runs.record import Record, read_record

UNITS = {"attention": 3 * 4, "ffn": 3 * 48}  # of the tiny model


@dataclass(frozen=True)
class Ran:
    """A finished run: where it was started, its arguments, its folder, what it printed."""

    cwd: Path
    arguments: list[str]
    folder: Path
    stdout: str
    stderr: str

    @property
    def record(self) -> Record:
        record = read_record(self.folder)
        assert record is not None
        return record

    def values(self, metric: str, subject: str) -> list[float]:
        return [
            float(row.value)
            for row in self.record.results
            if (row.metric, row.subject) == (metric, subject) and row.value
        ]


def kept(folder: Path) -> dict[str, int]:
    """Number of units of each kind that the mask file keeps."""
    space, mask = load_mask(folder / "mask.safetensors")
    counts = dict.fromkeys(UNITS, 0)
    for (_, kind), view in space.views(mask).items():
        counts[kind] += int(view.sum())
    return counts


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "stories.txt", paragraphs(150))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, corpus: Path) -> Ran:
    """One run with everything on, in the default folder; most tests here look at it."""
    cwd = tmp_path_factory.mktemp("searched")
    arguments = small_run(
        tiny_checkpoint, corpus, *POLICY_GRADIENT, "budget.keep=0.75", *SMALL_SEARCH, *SMALL_EVALUATION
    )
    done = console(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return Ran(cwd, arguments, cwd / "outputs" / run_label(composed(*arguments)), done.stdout, done.stderr)


def test_folder_is_named_by_the_config_and_holds_everything(searched: Ran) -> None:
    assert [path.name for path in (searched.cwd / "outputs").iterdir()] == [searched.folder.name]
    expected = {"config.yaml", "run.log", "record.json", "mask.safetensors", "curve.jsonl", "checkpoint", "plan.json"}
    assert {path.name for path in searched.folder.iterdir()} == expected
    assert [path.name for path in searched.cwd.iterdir()] == ["outputs"]


def test_record_tells_the_whole_run(searched: Ran) -> None:
    record = searched.record
    assert (record.status, record.error) == ("finished", None)
    assert record.protocol["calibration"] == {"split": "train", "count": 48, "length": 16, "seed": 0}
    assert record.versions["torch"] == version("torch")
    assert set(record.git) == {"commit", "dirty"}
    assert [stage["name"] for stage in record.stages] == [
        "load",
        "data",
        "rehearsal",
        "importance",
        "search",
        "export",
        "evaluation",
    ]
    assert all(stage["seconds"] >= 0 and stage["peak_memory_mb"] > 0 for stage in record.stages)
    assert record.search["forwards"] == 5 * 2
    assert record.calibration == {
        "importance": {"sequences": 16, "tokens": 16 * 16, "backpropagation": False},
        "search": {"sequences": 5 * 4, "tokens": 5 * 4 * 16, "backpropagation": False},
    }
    assert "optimizer.steps=5" in record.command


def test_config_file_gives_the_same_run(searched: Ran) -> None:
    content = yaml.safe_load((searched.folder / "config.yaml").read_text())
    assert content == searched.record.config
    assert content["optimizer"]["steps"] == 5


def test_curve_has_a_line_for_each_step(searched: Ran) -> None:
    steps = [json.loads(line) for line in (searched.folder / "curve.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5]
    assert [step["forwards"] for step in steps] == [2, 4, 6, 8, 10]
    assert all(0 < step["loss"] < 100 and 0 < step["keep"] <= 0.76 for step in steps)


def test_log_file_has_the_stages(searched: Ran) -> None:
    log = (searched.folder / "run.log").read_text()
    assert all(f"{stage['name']}: " in log for stage in searched.record.stages)


def test_kept_units_are_the_budget_exactly(searched: Ran) -> None:
    assert kept(searched.folder) == {kind: round(0.75 * count) for kind, count in UNITS.items()}
    rates = searched.record.keep_rates
    for kind, count in UNITS.items():
        rows = [row for row in rates if row["kind"] == kind]
        assert sum(row["kept"] for row in rows) == round(0.75 * count)
        assert sum(row["count"] for row in rows) == count


def test_reloaded_checkpoint_has_the_perplexity_of_the_pruned_model(searched: Ran) -> None:
    pruned, reloaded = searched.values("perplexity", "pruned"), searched.values("perplexity", "reloaded")
    assert len(pruned) == 1
    assert reloaded == pytest.approx(pruned, rel=1e-4)
    assert pruned != pytest.approx(searched.values("perplexity", "dense"), rel=1e-4)


def test_checkpoint_has_the_widths_of_the_mask(searched: Ran) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = searched.folder / "checkpoint"
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size
    space, mask = load_mask(searched.folder / "mask.safetensors")
    counts = {key: int(view.sum()) for key, view in space.views(mask).items()}
    assert {(block.layer, block.kind): block.count for block in adapt(model).blocks} == counts
    assert sum(parameter.numel() for parameter in model.parameters()) == searched.values("parameters", "pruned")[0]


def test_nothing_but_our_own_lines_and_bars_is_on_the_screen(searched: Ran) -> None:
    """Layers of unequal width, a fresh process, a latency: what other packages say of them helps nobody."""
    assert "search  " in searched.stderr
    assert foreign_lines(searched.stderr) == []
    assert foreign_lines(searched.stdout.partition("\n\n")[0]) == [], "before the table"


def test_a_checkpoint_tells_nothing_of_the_machine(searched: Ran, corpus: Path, tiny_checkpoint: Path) -> None:
    texts = [path for path in (searched.folder / "checkpoint").iterdir() if path.suffix != ".safetensors"]
    assert {"README.md", "config.json", "tokenizer_config.json"} <= {path.name for path in texts}
    for path in texts:
        text = path.read_text(encoding="utf-8")
        for private in (corpus.parent, tiny_checkpoint.parent, searched.cwd, Path.home(), Path(__file__).parent):
            assert len(private.parts) < 2 or str(private) not in text, path
    card = (searched.folder / "checkpoint" / "README.md").read_text(encoding="utf-8")
    assert "Made from `tiny`" in card
    assert f"model.source={tiny_checkpoint.name}" in card
    assert f"task.files=[{corpus.name}]" in card.replace("'", "")
    assert str(corpus) in " ".join(searched.record.command)


def test_every_subject_is_measured(searched: Ran) -> None:
    measured = {(row.subject, row.metric) for row in searched.record.results}
    assert {(subject, "perplexity") for subject in ("dense", "one_shot", "pruned", "reloaded")} <= measured
    for metric in ("parameters", "block_macs", "latency", "checkpoint"):
        assert {("dense", metric), ("pruned", metric)} <= measured
    assert ("pruned", "latency_ratio") in measured
    one_shot = [row for row in searched.record.results if (row.metric, row.subject) == ("perplexity", "one_shot")]
    scopes = [row.protocol["scope"] for row in one_shot]
    assert scopes == ["global", "per_layer"]
    assert searched.values("parameters", "pruned") < searched.values("parameters", "dense")


def test_table_and_closing_words_are_printed(searched: Ran) -> None:
    assert f"{searched.values('perplexity', 'dense')[0]:,.2f}" in searched.stdout
    assert f"{searched.values('perplexity', 'pruned')[0]:,.2f}" in searched.stdout
    assert f"from_pretrained({str(searched.folder / 'checkpoint')!r}" in searched.stdout
    (ratio,) = searched.values("latency_ratio", "pruned")
    assert f"{ratio:.2f} of dense (one round)" in searched.stdout


def test_a_finished_run_is_shown_and_not_repeated(searched: Ran) -> None:
    files = ("record.json", "mask.safetensors", "curve.jsonl", "checkpoint/config.json")
    before = {name: (searched.folder / name).stat().st_mtime_ns for name in files}
    done = forked(*searched.arguments, cwd=searched.cwd)
    assert done.returncode == 0, done.stderr
    assert "finished already" in done.stdout
    assert f"{searched.values('perplexity', 'pruned')[0]:,.2f}" in done.stdout
    assert {name: (searched.folder / name).stat().st_mtime_ns for name in files} == before


def test_same_seed_same_mask_in_another_folder_and_force_repeats(searched: Ran, tmp_path: Path) -> None:
    arguments = [*searched.arguments[: -len(SMALL_EVALUATION)], "evaluation=none", "hydra.run.dir=here"]
    space, mask = load_mask(searched.folder / "mask.safetensors")
    times = []
    for force in ("false", "true"):
        done = forked(*arguments, f"force={force}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        other_space, other_mask = load_mask(tmp_path / "here" / "mask.safetensors")
        assert other_space == space
        assert torch.equal(other_mask, mask)
        times.append((tmp_path / "here" / "record.json").stat().st_mtime_ns)
    assert times[1] > times[0]


def test_another_config_in_the_folder_of_a_run_is_refused(searched: Ran) -> None:
    before = (searched.folder / "record.json").read_bytes()
    done = forked(*searched.arguments, "seed=1", f"hydra.run.dir={searched.folder}", cwd=searched.cwd)
    assert done.returncode == 2
    assert "policyprune: hydra.run.dir: " in done.stderr
    assert (searched.folder / "record.json").read_bytes() == before
    assert yaml.safe_load((searched.folder / "config.yaml").read_text())["seed"] == 0


def test_multirun_makes_a_folder_for_each_seed(tiny_checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    arguments = small_run(tiny_checkpoint, corpus, "optimizer=one_shot", "importance=random", "evaluation=none")
    done = forked("-m", "seed=0,1", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folders = {seed: tmp_path / "outputs" / run_label(composed(f"seed={seed}", *arguments)) for seed in (0, 1)}
    assert {path for path in (tmp_path / "outputs").iterdir() if path.is_dir()} == set(folders.values())
    records = {seed: read_record(folder) for seed, folder in folders.items()}
    assert {seed: record.config["seed"] for seed, record in records.items() if record} == {0: 0, 1: 1}
    masks = [load_mask(folder / "mask.safetensors")[1] for folder in folders.values()]
    assert not torch.equal(*masks)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, corpus: Path) -> dict[tuple[str, str], Any]:
    """Records by budget and granularity, of one multirun."""
    cwd = tmp_path_factory.mktemp("swept")
    arguments = ["optimizer=one_shot", "importance=magnitude", "tuning=none", "budget.keep=0.9", *SMALL_EVALUATION]
    axes = ["budget=flops,params,rate", "granularity=head,channel,head_channel"]
    once = ["evaluation.fresh_process=false"]
    done = forked("-m", *axes, *small_run(tiny_checkpoint, corpus, *arguments, *once), cwd=cwd)
    assert done.returncode == 0, done.stderr
    folders = [path for path in (cwd / "outputs").iterdir() if path.is_dir()]
    records = [(read_record(folder), folder) for folder in folders]
    return {(r.config["budget"]["name"], r.config["granularity"]["name"]): (r, folder) for r, folder in records if r}


@pytest.mark.parametrize("budget", ["flops", "params", "rate"])
@pytest.mark.parametrize("granularity", ["head", "channel", "head_channel"])
def test_every_budget_is_met_at_every_granularity(
    swept: dict[tuple[str, str], Any], budget: str, granularity: str
) -> None:
    record, folder = swept[budget, granularity]
    assert record.status == "finished"
    cut = {"head": ["attention"], "channel": ["ffn"], "head_channel": ["attention", "ffn"]}[granularity]
    assert {row["kind"] for row in record.keep_rates} == set(cut)
    counts = kept(folder)
    assert 0 < sum(counts.values()) < sum(UNITS[kind] for kind in cut)
    if budget == "rate":
        assert counts == {kind: round(0.9 * UNITS[kind]) if kind in cut else 0 for kind in UNITS}
        return
    metric = {"flops": "block_macs", "params": "block_parameters"}[budget]
    sizes = {row.subject: row.value for row in record.results if row.metric == metric and row.subject != "one_shot"}
    assert sizes["pruned"] <= 0.9 * sizes["dense"]
    assert sizes["pruned"] > 0.85 * sizes["dense"], "the budget is not used"


def test_without_a_choice_the_recommended_method_runs(tiny_checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    arguments = small_run(tiny_checkpoint, corpus, *SMALL_EVALUATION, "evaluation.fresh_process=false")
    done = forked(*arguments, "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "run")
    assert record is not None
    assert record.config["method"] == "ours"
    assert record.search["backwards"] == 0
    assert record.calibration["tuning"]["backpropagation"]
    assert {"pruned", "tuned"} <= {row.subject for row in record.results if row.metric == "perplexity"}
    assert record.calibration["tuning"]["sequences"] == 48, "all there are, to fit and to judge by"


def test_a_run_that_is_refused_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "stories.jsonl", paragraphs(60))
    arguments = small_run(tiny_checkpoint, corpus, "task.text_column=body", "hydra.run.dir=broken")
    done = forked(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "policyprune: task.text_column: 'body' is not one of text"
    assert [path.name for path in tmp_path.iterdir()] == ["stories.jsonl"]
