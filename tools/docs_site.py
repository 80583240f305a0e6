"""The hook of mkdocs.yml: README.md is the site's first page, and what the pages link to goes with them.

On GitHub pages link to files of the repository (`../results/...`). A site holds only docs/. So every linked
file is added to the site below `repository/`, a Markdown file as a page, and the links are rewritten.
A link to a file that is missing stays as it is, and `mkdocs build --strict` refuses it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# [text](target#anchor), ![](target), src="target"; addresses and anchors of the same page are left out
LINK = re.compile(r'(?P<before>\]\(|src=")(?P<target>(?!\w+:|#)[^)\s"#]+)')


def target(page: str, link: str) -> str:
    """The path in the repository of a link on `page`, both relative to the repository's root."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def place(path: str) -> str:
    """Where a file of the repository is in the site."""
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def source(uri: str) -> str:
    """The file of the repository behind a place in the site: the opposite of `place`."""
    if uri == "index.md":
        return "README.md"
    return uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}"


def linked(path: str) -> list[str]:
    """The files of the repository that a Markdown file links to."""
    text = (ROOT / path).read_text(encoding="utf-8")
    found = {target(path, match["target"]) for match in LINK.finditer(text)}
    return sorted(one for one in found if not one.startswith("..") and (ROOT / one).is_file())


def on_files(files, config):
    from mkdocs.structure.files import File

    todo = ["README.md", *(source(file.src_uri) for file in files if file.src_uri.endswith(".md"))]
    seen = set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        if files.get_file_from_path(place(path)) is None:
            files.append(File.generated(config, place(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
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
