"""A checkpoint that is another model than the one that was measured fails the run, and says so itself."""

from pathlib import Path
from typing import Any

import pytest

from harness import SMALL_EVALUATION, paragraphs, small_run, validated, write_corpus
from policyprune import cli
from policyprune.commands import run as pipeline
from policyprune.errors import RunError
from policyprune.evaluation.perplexity import TextQuality
from policyprune.runs.record import read_record


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "stories.txt", paragraphs(150))


@pytest.fixture
def _elsewhere_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a class of its own was written as the stock class: another process measures a little more."""

    def measured(self: Any, checkpoint: Path, like: Any, *rest: Any) -> Any:
        return [row._replace(value=1.03 * row.value) for row in self.of("elsewhere", like)]

    monkeypatch.setattr(TextQuality, "elsewhere", measured)


@pytest.mark.usefixtures("_elsewhere_differs", "own_logging")
def test_the_run_fails_and_the_checkpoint_says_why(tiny_checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    changes = ["optimizer=one_shot", "tuning=none", "evaluation.fresh_process=true", *SMALL_EVALUATION]
    with pytest.raises(RunError, match=r"checkpoint' is not trustworthy: its perplexity is .* in memory"):
        pipeline.run(validated(*small_run(tiny_checkpoint, corpus, *changes)), folder)
    record = read_record(folder)
    assert record is not None
    assert record.status == "failed"
    assert record.error is not None
    assert "is not trustworthy" in record.error
    values = {row.subject: row.value for row in record.results if row.metric == "perplexity"}
    assert values["reloaded"] == pytest.approx(1.03 * (values["pruned"] or 0))
    assert (folder / "checkpoint" / "model.safetensors").is_file()
    assert "is not trustworthy" in (folder / "checkpoint" / "README.md").read_text()


@pytest.mark.usefixtures("_elsewhere_differs", "own_logging")
def test_evaluate_fails_alike(
    tiny_checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "measured"
    before = sorted(tiny_checkpoint.iterdir())
    changes = ["task=text", f"task.files=[{corpus}]", *SMALL_EVALUATION, "evaluation.fresh_process=true"]
    monkeypatch.setattr(
        "sys.argv", ["policyprune", "evaluate", str(tiny_checkpoint), *changes, f"hydra.run.dir={folder}"]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "is not trustworthy" in capsys.readouterr().err
    record = read_record(folder)
    assert record is not None
    assert record.status == "failed"
    assert {row.subject for row in record.results} == {"evaluated", "reloaded"}
    assert sorted(tiny_checkpoint.iterdir()) == before
