"""A report as one HTML page that needs nothing beside it."""

import base64
import json
from collections.abc import Mapping
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from policyprune.report.contents import Report
from policyprune.report.quality import Subject

TEMPLATE = "page.html.j2"
BEFORE_PLOTS = 2  # tables of a section that stand above its plots


def page(report: Report, drawings: Mapping[str, bytes]) -> str:
    """The page; `drawings` has the SVG of each plot by name, and goes in as data."""
    images = {name: f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" for name, svg in drawings.items()}
    source = files("policyprune.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    # what is shown comes from files of others: everything is escaped
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    protocols = {subject.name: text for subject in report.subjects if (text := _protocol(report, subject))}
    template = environment.from_string(source)
    return template.render(report=report, images=images, protocols=protocols, shown=BEFORE_PLOTS)


def _protocol(report: Report, subject: Subject) -> str:
    """Protocol and versions of the subject's first finished run; the tables say where others differ."""
    for run in report.runs:
        if (run.model, run.task, run.status) == (subject.model, subject.task, "finished"):
            content = {key: run.content.get(key) for key in ("protocol", "versions", "hardware")}
            return json.dumps(content, indent=2, ensure_ascii=False)
    return ""
