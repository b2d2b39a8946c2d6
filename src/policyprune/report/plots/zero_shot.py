"""Zero-shot accuracies as bars."""

from collections.abc import Mapping
from typing import Any

from policyprune.report.measures import DENSE, Line
from policyprune.report.metrics import title
from policyprune.report.plots.style import INK, WIDTH, Look, Plot, legend, panels
from policyprune.report.quality import Subject

METRICS = ("acc_norm", "acc")  # the first that a task has


def zero_shot_bars(subject: Subject, looks: Mapping[Line, Look]) -> Plot | None:
    """A panel per keep rate, a group of bars per task, a bar per method; the dense model as a line across the group."""
    values: dict[tuple[Line, float | None, str], Any] = {}
    for metric in METRICS:
        for own in subject.cells[subject.cells["metric"] == metric].itertuples():
            keep = None if own.keep != own.keep else own.keep
            line = Line(own.model, own.task, own.method, own.tuning)
            if "task" in dict(own.place) and own.mean == own.mean:
                values.setdefault((line, keep, str(dict(own.place)["task"])), own)
    tasks = list(dict.fromkeys(task for _, _, task in values))
    keeps = [keep for keep in subject.keeps if any(key[1] == keep for key in values if key[0].method != DENSE)]
    if not tasks or not keeps:
        return None
    figure, axes = panels(len(keeps), 1, 1.75)
    figure.set_figwidth(WIDTH)
    for keep, own in zip(keeps, axes, strict=True):
        lines = [line for line in subject.lines if line.method != DENSE and any(k[:2] == (line, keep) for k in values)]
        width = 0.82 / len(lines)
        for number, line in enumerate(lines):
            found = [
                (place, values[line, keep, task]) for place, task in enumerate(tasks) if (line, keep, task) in values
            ]
            own.bar(
                [place - 0.41 + (number + 0.5) * width for place, _ in found],
                [cell.mean for _, cell in found],
                width * 0.92,
                yerr=[cell.stderr if cell.stderr == cell.stderr else 0.0 for _, cell in found],
                color=looks[line].color,
                hatch="//////" if looks[line].hollow else None,
                edgecolor="white",
                linewidth=0.3,
                error_kw={"elinewidth": 0.7, "ecolor": INK},
                label=line.title,
            )
        for place, task in enumerate(tasks):
            dense = next((cell for key, cell in values.items() if key[0].method == DENSE and key[2] == task), None)
            if dense is not None:
                own.hlines(dense.mean, place - 0.44, place + 0.44, color=INK, linewidth=1.2, label=DENSE)
        own.set_xticks(range(len(tasks)), [_name(values, task) for task in tasks])
        own.tick_params(axis="x", length=0)
        own.grid(visible=False, axis="x")
        own.set_title(f"keep {keep:g}" if keep is not None else "")
        own.set_ylabel("accuracy")
        own.set_ylim(0, None)
        own.set_xlim(-0.55, len(tasks) - 0.45)
    legend(figure, axes)
    caption = "Zero-shot accuracy, normalised by length where the task has it. Bars: standard error; line: dense model."
    return Plot("zero-shot", caption, figure)


def _name(values: Mapping[tuple[Line, float | None, str], Any], task: str) -> str:
    """The task, and its metric below."""
    metric = next(cell.metric for key, cell in values.items() if key[2] == task)
    return f"{task}\n{title(metric)}"
