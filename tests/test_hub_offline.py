"""Model and data set by their hub ids, from a cache on disk, without a network."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest

from harness import SMALL_EVALUATION, SMALL_SEARCH, SMALL_TASK, console, paragraphs
from policyprune.runs.record import Record, read_record

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SUBSET = "wikitext-2-raw-v1"
CARD = f"""---
configs:
- config_name: {SUBSET}
  data_files:
  - split: train
    path: {SUBSET}/train-*
  - split: test
    path: {SUBSET}/test-*
---
A tiny data set in the layout of WikiText.
"""


def add_to_cache(hub: Path, kind: str, name: str, files: dict[str, bytes]) -> None:
    """Lay a repository into a hub cache as huggingface_hub does: blobs, a snapshot of links, a ref."""
    folder = hub / f"{kind}--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "blobs").mkdir()
    for file, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = folder / "snapshots" / COMMIT / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))


def parquet(rows: list[str]) -> bytes:
    """A parquet file with the column `text`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table({"text": rows}), sink)
    return sink.getvalue()


def wikitext_rows(count: int, seed: int) -> list[str]:
    """Articles as WikiText has them: a heading, a blank row, lines that end with a line break."""
    rows: list[str] = []
    for number, text in enumerate(paragraphs(count, seed)):
        rows += ["", f" = Article {seed} {number} = \n", "", f" {text} \n"]
    return rows


@pytest.fixture(scope="module")
def hub_home(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A Hugging Face home whose hub cache holds a model and a data set."""
    home = tmp_path_factory.mktemp("home")
    model = {path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()}
    add_to_cache(home / "hub", "models", "someone/tiny-llama", model)
    data = {f"{SUBSET}/{split}-00000-of-00001.parquet": parquet(rows) for split, rows in ROWS.items()}
    add_to_cache(home / "hub", "datasets", "someone/wikitext", {"README.md": CARD.encode(), **data})
    return home


ROWS = {"train": wikitext_rows(120, seed=1), "test": wikitext_rows(30, seed=2)}


@pytest.fixture(scope="module")
def hub_record(hub_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """The record of a run by hub ids."""
    cwd = tmp_path_factory.mktemp("by-hub-id")
    axes = ["model.source=someone/tiny-llama", "task=wikitext2", "task.source=someone/wikitext"]
    small = ["method=straight_through", *SMALL_TASK, *SMALL_SEARCH, *SMALL_EVALUATION, "evaluation.fresh_process=false"]
    variables = {"HF_HOME": str(hub_home), "HF_HUB_CACHE": str(hub_home / "hub"), "HF_HUB_OFFLINE": "1"}
    done = console(*axes, *small, "hydra.run.dir=run", cwd=cwd, environment=variables)
    assert done.returncode == 0, done.stderr
    record = read_record(cwd / "run")
    assert record is not None
    return record


def test_a_run_by_hub_ids_finishes(hub_record: Record) -> None:
    assert hub_record.status == "finished"
    assert hub_record.config["model"]["source"] == "someone/tiny-llama"
    assert {"dense", "pruned"} <= {row.subject for row in hub_record.results if row.metric == "perplexity"}


def test_the_protocol_names_the_hub_data_set(hub_record: Record) -> None:
    protocol: dict[str, Any] = hub_record.protocol
    assert (protocol["source"], protocol["subset"]) == ("someone/wikitext", SUBSET)
    assert (protocol["test_split"], protocol["calibration"]["split"]) == ("test", "train")


def test_the_test_text_is_the_rows_joined_by_blank_lines(hub_record: Record) -> None:
    text = "\n\n".join(ROWS["test"])
    assert hub_record.protocol["test_text"] == hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize("key", ["model.source", "task.source"])
def test_what_is_not_in_the_cache_is_refused_by_name(hub_home: Path, tmp_path: Path, key: str) -> None:
    known = {"model.source": "someone/tiny-llama", "task.source": "someone/wikitext"}
    sources = [f"{name}={value}" for name, value in (known | {key: "someone/unknown"}).items()]
    variables = {"HF_HOME": str(hub_home), "HF_HUB_CACHE": str(hub_home / "hub"), "HF_HUB_OFFLINE": "1"}
    done = console("task=wikitext2", *sources, *SMALL_TASK, "hydra.run.dir=run", cwd=tmp_path, environment=variables)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"policyprune: {key}: 'someone/unknown'")
