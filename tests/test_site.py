"""The site builds without a warning, and the pages that are read on GitHub link to what is there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def built(folder: Path, *, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`mkdocs build --strict` of a checkout: dead links, dead anchors and pages outside the navigation are errors."""
    arguments = ["build", "--strict", "--config-file", str(root / "mkdocs.yml"), "--site-dir", str(folder)]
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", *arguments],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = built(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_has_its_place_in_the_site(site: Path) -> None:
    pages = {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")}
    assert pages | {"changelog.html", "contributing.html"} <= {path.name for path in site.glob("*.html")}
    assert not list(site.rglob("*.py"))


def test_no_page_asks_another_server_for_anything(site: Path) -> None:
    wanted = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=\"?(?:https?:)?//[^\s>]+")
    found = {page.name: wanted.findall(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    assert not {name: links for name, links in found.items() if links}
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.findall(r"(?:url\(|@import)\s*['\"]?https?:", styles)


def test_lists_are_lists(site: Path) -> None:
    """GitHub begins a list right behind a line of text, the site only behind an empty line."""
    item = re.compile(r"<p>(?:(?!</p>).)*?\n(?:-|\d\.) [^\n]*", flags=re.DOTALL)
    pages = {page.name: item.findall(page.read_text(encoding="utf-8")) for page in site.glob("*.html")}
    assert not {name: lists for name, lists in pages.items() if lists}


@pytest.mark.parametrize("name", OUTSIDE)
def test_links_of_the_pages_outside_docs_lead_somewhere(site: Path, name: str) -> None:
    links = [link for link in LINK.findall((ROOT / name).read_text(encoding="utf-8")) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        assert (ROOT / path).exists(), f"{name} links to {link}"
        if anchor and path:
            page = (site / Path(path).name).with_suffix(".html").read_text(encoding="utf-8")
            assert f'id="{anchor}"' in page, f"{name} links to {link}"


@pytest.mark.parametrize("link", ["gone.md", "report.md#gone", "../src/gone.py"])
def test_a_dead_link_ends_the_build(tmp_path: Path, link: str) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for path in ROOT.iterdir():
        if path.name != "docs":
            (checkout / path.name).symlink_to(path)
    shutil.copytree(ROOT / "docs", checkout / "docs")
    (checkout / "mkdocs.yml").unlink()
    shutil.copy(ROOT / "mkdocs.yml", checkout / "mkdocs.yml")
    with (checkout / "docs" / "index.md").open("a", encoding="utf-8") as page:
        page.write(f"\n[A link]({link})\n")
    done = built(tmp_path / "site", root=checkout)
    assert done.returncode != 0
    assert link in done.stderr or link.partition("#")[2] in done.stderr
