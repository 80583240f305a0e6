"""The hook of mkdocs.yml: README.md is the site's first page, and what the pages link to goes with them.

On GitHub pages link to files of the repository (`../results/...`). A site holds only docs/. So every linked
file is added to the site below `repository/`, a Markdown file as a page, and the links are rewritten.
A link to a file that is missing stays as it is, and `mkdocs build --strict` refuses it.

The pages of executed notebooks, which tools/render_notebooks.py wrote into build/rendered, go to `notebooks/`
with a part of the menu of their own, and links to a notebook lead to its page. Formulas become MathML.
"""

from __future__ import annotations

import posixpath
import re
from html import unescape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RENDERED = ROOT / "build" / "rendered"
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
# [text](target#anchor), ![](target), src="target"; addresses and anchors of the same page are left out
LINK = re.compile(r'(?P<before>\]\(|src=")(?P<target>(?!\w+:|#)[^)\s"#]+)')


def target(page: str, link: str) -> str:
    """The path in the repository of a link on `page`, both relative to the repository's root."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def rendered(path: str) -> Path | None:
    """The page made of a notebook of the repository, None where no run was rendered."""
    page = RENDERED / f"{Path(path).stem}.md"
    return page if re.fullmatch(r"notebooks/[^/]+\.ipynb", path) and page.is_file() else None


def place(path: str) -> str:
    """Where a file of the repository is in the site."""
    if path == "README.md":
        return "index.md"
    if rendered(path):
        return path.removesuffix(".ipynb") + ".md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def source(uri: str) -> str:
    """The file of the repository behind a place in the site: the opposite of `place`."""
    if uri == "index.md":
        return "README.md"
    if uri.startswith("notebooks/") and uri.endswith(".md"):
        return uri.removesuffix(".md") + ".ipynb"
    return uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}"


def linked(path: str) -> list[str]:
    """The files of the repository that a Markdown file, or the page of a notebook, links to."""
    text = (rendered(path) or ROOT / path).read_text(encoding="utf-8")
    found = {target(path, match["target"]) for match in LINK.finditer(text)}
    return sorted(one for one in found if not one.startswith("..") and (ROOT / one).is_file())


def on_config(config):
    """The rendered notebooks in the menu, after the pages on how to use the kit."""
    if (RENDERED / "index.md").is_file():
        pages = ["index.md", *sorted(path.name for path in RENDERED.glob("[0-9]*.md"))]
        config.nav.insert(2, {"Notebooks": [f"notebooks/{name}" for name in pages]})
    return config


def on_files(files, config):
    from mkdocs.structure.files import File

    def add(uri: str, path: Path) -> None:
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(path)))

    todo = ["README.md", *(source(file.src_uri) for file in files if file.src_uri.endswith(".md"))]
    for path in sorted(p for p in RENDERED.rglob("*") if p.is_file()):
        name = path.relative_to(RENDERED).as_posix()
        add(f"notebooks/{name}", path)
        if name.endswith(".md"):
            todo.append(source(f"notebooks/{name}"))
    seen = set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        add(place(path), rendered(path) or ROOT / path)
        if path.endswith(".md") or rendered(path):
            todo += linked(path)
    return files


def on_page_markdown(markdown, page, config, files):
    here = source(page.file.src_uri)

    def moved(match):
        path = target(here, match["target"])
        if not (ROOT / path).is_file():
            return match[0]
        return match["before"] + posixpath.relpath(place(path), posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(moved, markdown)


def on_page_content(html, page, config, files):
    return FORMULA.sub(lambda m: formula(unescape(m[3]), m[2] == "["), html)


def formula(tex: str, alone: bool) -> str:
    """MathML of a formula in TeX, which browsers show without a script; alone: on a line of its own."""
    from latex2mathml.converter import convert

    tex = tex.replace(r"\arg", r"\operatorname{arg}")
    tex = re.sub(r"\\tag\{(.*?)\}", r"\\qquad\\qquad\\text{(\1)}", tex)
    return convert(tex, display="block" if alone else "inline")
