"""Every link and picture of README.md, docs/, data/README.md and results/README.md leads somewhere. Offline:
addresses of other sites are left out.
"""

import importlib
import re
from pathlib import Path

import pytest
import yaml

from ifcsr_lib.config import ROOT

PAGES = [ROOT / name for name in ("README.md", "data/README.md", "results/README.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
FENCE = re.compile(r"^ *(```|~~~).*?^ *\1", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINKS = (
    re.compile(r"\]\(<?([^)>\s]+)>?(?:\s+\"[^\"]*\")?\)"),  # [text](target), ![](target "title")
    re.compile(r"(?:src|href)=\"([^\"]+)\""),
    re.compile(r"^ {0,3}\[[^\]]+\]:\s*(\S+)", re.MULTILINE),  # [name]: target
)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    found = {}
    for title in re.findall(r"^#{1,6} +(.+?) *#*$", FENCE.sub("", text), re.MULTILINE):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {f"{slug}-{i}" if i else slug for slug, count in found.items() for i in range(count + 1)}


def broken(page: Path, root: Path = ROOT) -> list[str]:
    """What is wrong with the links of a Markdown file, in sentences."""
    own = page.read_text(encoding="utf-8")
    text = CODE.sub("", FENCE.sub("", own))
    wrong = []
    for link in [link for pattern in LINKS for link in pattern.findall(text)]:
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        if path.startswith("/") or not target.is_relative_to(root.resolve()):
            wrong.append(f"{link} leads out of the repository")
        elif not target.exists():
            wrong.append(f"{link}: there is no such file")
        elif anchor and target.suffix != ".md":
            wrong.append(f"{link}: an anchor leads into a Markdown file only")
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
            wrong.append(f"{link}: {target.name} has no such heading")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page):
    assert not (found := broken(page)), "\n".join(found)


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("[a](there.md) ![b](p.png 'x') [c](there.md#a-heading) [d](#own) [e](https://x.org/no) # own\n", 0),
        ("[a](gone.md)", 1),
        ("![a](gone.png)", 1),
        ('<img src="gone.png"> <a href="there.md">', 1),
        ("[a](there.md#no-heading)", 1),
        ("[a](#nowhere)", 1),
        ("[a](p.png#part)", 1),
        ("[a](../../outside.md)", 1),
        ("[a](/there.md)", 1),
        ("[a]: gone.md\n", 1),
        ("`[a](gone.md)`\n```\n[a](gone.md)\n```\n", 0),
        ("[`code`](gone.md)", 1),
    ],
)
def test_a_broken_link_is_found(text, wrong, tmp_path):
    (tmp_path / "there.md").write_text("# A `heading`!\n")
    (tmp_path / "p.png").touch()
    (tmp_path / "page.md").write_text(f"# Own\n\n{text}")
    assert len(broken(tmp_path / "page.md", tmp_path)) == wrong


def test_anchors_are_githubs():
    text = "# One, two: `x`\n## One two\n### One two\n```\n# no heading\n```\n## [Link](x.md) (y_z)\n"
    assert anchors(text) == {"one-two-x", "one-two", "one-two-1", "link-y_z"}


def test_every_page_is_in_the_menu():
    def names(part):
        if isinstance(part, str):
            return [part]
        return [name for one in (part.values() if isinstance(part, dict) else part) for name in names(one)]

    menu = names(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    there = [path.relative_to(ROOT / "docs").as_posix() for path in PAGES[3:]]
    assert sorted(menu) == sorted([*there, "index.md"])


def test_the_site_holds_what_its_pages_link_to(monkeypatch):
    """Every linked file has a place of its own, and the rewritten link leads from page to place."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    site = importlib.import_module("docs_site")
    for path in (
        "README.md",
        *(p.relative_to(ROOT).as_posix() for p in PAGES[3:]),
        *site.linked("README.md"),
        *site.linked("docs/experiments.md"),
    ):
        assert site.source(site.place(path)) == path
    assert "results/reference/pocket/LOG.md" in site.linked("docs/experiments.md")
    assert "docs/install.md" in site.linked("README.md")

    class Page:
        class file:
            src_uri = "control.md"

    log = "results/reference/pocket/LOG.md"
    text = f"[a](../README.md#x) [b](../{log}) [c](beyond.md) [d](gone.md) [e](https://x.org)"
    assert site.on_page_markdown(text, Page, None, None) == (
        f"[a](index.md#x) [b](repository/{log}) [c](beyond.md) [d](gone.md) [e](https://x.org)"
    )
