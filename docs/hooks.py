"""What the site adds to the pages of this folder: two pages of the repository's root, and links to its files.

On a page of docs/, `](../Makefile)` leads to the file in a checkout and on GitHub. The site has no such file, so there
the link leads to the repository. A link to a file that is not there is a warning, an error of `mkdocs build --strict`.
"""

import logging
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/policyprune/policyprune/blob/main/"
FROM_ROOT = ("CHANGELOG.md", "CONTRIBUTING.md")
LINK = re.compile(r"\]\((?P<path>[^)#:]+)(?P<anchor>#[^)]*)?\)")

log = logging.getLogger("mkdocs.policyprune")


def on_files(files: Files, config: Any) -> Files:
    """Changelog and contributing guide become pages; their links are those of a page in docs/ then."""
    for name in FROM_ROOT:
        text = LINK.sub(_seen_from_docs, (ROOT / name).read_text(encoding="utf-8"))
        files.append(File.generated(config, name.lower(), content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that leave docs/ lead to the repository."""

    def leaving(link: re.Match[str]) -> str:
        path = link["path"]
        if not path.startswith("../"):
            return link[0]
        inside = path.removeprefix("../")
        if not (ROOT / inside).exists():
            log.warning(f"{page.file.src_uri} links to {path}, which is not in the repository")
        if inside in FROM_ROOT:
            return f"]({inside.lower()}{link['anchor'] or ''})"
        return f"]({REPOSITORY}{inside}{link['anchor'] or ''})"

    return LINK.sub(leaving, markdown)


def _seen_from_docs(link: re.Match[str]) -> str:
    path = link["path"]
    return f"]({path.removeprefix('docs/') if path.startswith('docs/') else '../' + path}{link['anchor'] or ''})"
