"""Pages of a run's executed notebooks for the web site, and the slider that the site lets people play with.

    python tools/render_notebooks.py                       of results/pocket (or $IFCSR_RESULTS/pocket)
    python tools/render_notebooks.py --from DIR --to DIR   of another run's folder, into another

Written below build/rendered: one Markdown page per notebook with code, text, tables and pictures, each
picture below 150 kB; slider.html, which is the page that notebook 06 exported, or else one of the sample;
index.md, which lists them. `make docs` runs this, and tools/docs_site.py puts the pages into the site.
Without a run index.md says how to make one. Everything that had to be left out is a line on stderr.
"""

from __future__ import annotations

import argparse
import base64
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
from small_pictures import small
from you_should_see import seen

from ifcsr_lib.config import results_folder
from ifcsr_lib.errors import one_line
from ifcsr_lib.files.results import atomic
from ifcsr_lib.report.notebooks import executed, minutes

WIDTH = 1400  # pixels of the widest picture
WIDGET = "application/vnd.jupyter.widget-view+json"
KINDS = {".png": "image/png", ".jpg": "image/jpeg"}
# the line before a list's first item; a formula of its own with the line breaks around it
LIST = re.compile(r"^(?![ \t]|[*+-] |\d+\. |\|)(.+)\n(?=(?:[*+-]|\d+\.) )", re.MULTILINE)
FORMULA = re.compile(r"\n*(?<!\$)\$\$(?!\$)(.+?)\$\$\n*", re.DOTALL)
FRAME = '<iframe class="slider" src="slider.html" title="the slider" loading="lazy"></iframe>'
PLAY = f"{FRAME}\n\n[The slider in a window of its own](slider.html)"


def first_error(nb) -> str:
    """What a cell of an executed notebook failed with, "" when none did."""
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return one_line(f"{output.ename}: {output.evalue}")[:200]
    return ""


def homes(nb) -> list[tuple[str, str]]:
    """(folder of the machine that ran it, what stands for it on a page), as papermill noted them."""
    facts = nb.metadata.get("papermill", {})
    ran, kept = Path(facts.get("input_path") or ""), Path(facts.get("output_path") or "")
    out = []
    if kept.is_absolute() and len(kept.parents) > 3:  # results/<profile>/executed/<name>
        out.append((str(kept.parents[2]), "results/"))
    if ran.is_absolute() and len(ran.parents) > 2:  # <repository>/notebooks/<name>
        out.append((str(ran.parents[1]), ""))
    return out


def for_readers(nb, slider: bool):
    """Change an executed notebook, in place, to what a page shows of it, and return it.

    Pictures get small, tables lose the style that pandas gives them, a slider's widget becomes slider.html,
    bars and warnings go, and so do folders of the machine.
    """
    from nbconvert.filters import strip_ansi

    places = homes(nb)

    def told(text: str) -> str:
        for folder, word in places:
            text = text.replace(f"{folder}/", word)
        return text

    nb.cells = [cell for cell in nb.cells if not seen(cell)]  # the outputs themselves are here
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = for_mkdocs(cell.source)
        if cell.cell_type != "code":
            continue
        shown = []
        for output in cell.outputs:
            data = output.get("data", {})
            if output.output_type == "stream":
                if output.name == "stderr":
                    continue
                output.text = told(strip_ansi(output.text))
            elif WIDGET in data:
                if not data.get("text/plain", "").startswith("Explorer(") or not slider:
                    continue
                slider = False  # one pair is exported: the first of the page
                output.data = nbformat.from_dict({"text/markdown": PLAY})
            elif "image/png" in data:
                suffix, picture = small(base64.b64decode(data["image/png"]), WIDTH)
                output.data = nbformat.from_dict({KINDS[suffix]: base64.b64encode(picture).decode()})
            elif "text/html" in data:
                output.data = nbformat.from_dict({"text/html": told(plain_table(data["text/html"]))})
            elif "text/plain" in data:
                data["text/plain"] = told(data["text/plain"])
            shown.append(output)
        cell.outputs = shown
    return nb


def plain_table(text: str) -> str:
    """pandas' HTML without its style sheet, so that the site's own applies."""
    text = re.sub(r"<style.*?</style>\s*", "", text, flags=re.DOTALL)
    return re.sub(r'<table border="1" class="dataframe">', "<table>", text)


def for_mkdocs(text: str) -> str:
    """GitHub's Markdown as Python-Markdown reads it: folded answers hold Markdown, a list needs a blank line
    before it, a formula of its own a paragraph of its own.
    """
    parts = re.split(r"(^```.*?^```)", text, flags=re.MULTILINE | re.DOTALL)
    for i in range(0, len(parts), 2):
        part = parts[i].replace("<details>", '<details markdown="1">')
        parts[i] = FORMULA.sub(r"\n\n$$\1$$\n\n", LIST.sub(r"\1\n\n", part))
    return "".join(parts).strip("\n")


def page(nb, stem: str, slider: bool) -> tuple[str, dict[str, bytes]]:
    """(Markdown, {name: bytes of a picture}) of an executed notebook, which is changed."""
    from nbconvert import MarkdownExporter

    resources = {"unique_key": stem, "output_files_dir": f"{stem}_files"}
    text, resources = MarkdownExporter().from_notebook_node(for_readers(nb, slider), resources=resources)
    text = re.sub(r"\n([ ]*\n){3,}", "\n\n", text)  # between one output and the next
    text = re.sub(r"!\[(png|jpeg)\]\(", "![what the cell shows](", text)
    return text, resources.get("outputs") or {}


def title(nb) -> str:
    """The first heading."""
    found = re.search(r"^# +(.+)$", "\n".join(c.source for c in nb.cells[:3]), re.MULTILINE)
    return found[1] if found else "notebook"


def put_slider(run: Path, target: Path) -> str:
    """Write slider.html and return a sentence about its pair; "" with a line on stderr when there is none."""
    pages = sorted((run / "explorer").glob("*_page.html"))
    if pages:
        with atomic(target) as tmp:
            shutil.copyfile(pages[0], tmp)
        name = pages[0].stem.removesuffix("_page")
        return f"The pair is `{name}`, a photograph held out from training, as notebook 06 exported it."
    with atomic(target) as tmp:
        command = [sys.executable, "-m", "ifcsr_lib", "explore", "sample", "--no-open", "--out", str(tmp)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            tmp.touch()
    if done.returncode:
        target.unlink()
        print(f"no slider: {one_line(done.stderr)[-300:]}", file=sys.stderr)
        return ""
    return "The pair is the sample of `explore`: a photograph held out from training, degraded lightly."


def index(rows: list[tuple[str, str, str]], pair: str, profile: str) -> str:
    """index.md. rows: (stem, title, minutes) of the pages; pair: about the slider, "" for none."""
    out = ["# The notebooks, executed", ""]
    if rows:
        out += [
            f"The copies that a run wrote, profile {profile}: code, tables and pictures as they came out.",
            "",
        ]
        out += ["| notebook | took |", "|---|---|"]
        out += [f"| [{name}]({stem}.md) | {took} |" for stem, name, took in rows]
    else:
        out += ["No run is here yet: `make reproduce` makes one, and `make docs` then shows it here."]
    if pair:
        out += ["", "## The slider", "", f"Drag it. {pair} It runs in this page, without a server.", "", PLAY]
    return "\n".join(out) + "\n"


def render(run: Path, folder: Path) -> list[str]:
    """Write the pages of the run in `run` into `folder`; return the stems of the notebooks that got one.

    Pages of earlier calls that have no notebook any more are removed. A copy that is damaged or ended with an
    error is left out, with a line on stderr. Raises OSError when a file cannot be written.
    """
    pair, rows, facts = put_slider(run, folder / "slider.html"), [], executed(run / "executed")
    written, profile = {"index.md", "slider.html"}, run.name
    copies = [p for p in sorted((run / "executed").glob("[0-9]*.ipynb")) if ".failed" not in p.suffixes]
    if not copies:
        print(f"no executed notebooks in {run / 'executed'}: run `make reproduce` first", file=sys.stderr)
    for path in copies:
        try:
            nb = nbformat.read(path, as_version=4)
            if error := first_error(nb):
                raise ValueError(f"it ended with an error, {error}")
            name, (text, pictures) = title(nb), page(nb, path.stem, bool(pair))
        except (OSError, ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
            line = f"{path.name} is left out ({one_line(error)[:300]}); run `make reproduce` again"
            print(line, file=sys.stderr)
            continue
        for file, data in {f"{path.stem}.md": text.encode(), **pictures}.items():
            with atomic(folder / file) as tmp:
                tmp.write_bytes(data)
            written.add(Path(file).as_posix())
        took = facts.get(path.stem)
        profile = took.parameters.get("profile", profile) if took else profile
        rows.append((path.stem, name, minutes(took.seconds) if took else "-"))
    with atomic(folder / "index.md") as tmp:
        tmp.write_text(index(rows, pair, profile), encoding="utf-8")
    for old in [*folder.glob("[0-9]*.md"), *folder.glob("[0-9]*_files/*")]:
        if old.relative_to(folder).as_posix() not in written:
            old.unlink()
    for old in folder.glob("[0-9]*_files"):
        if not any(old.iterdir()):
            old.rmdir()
    return [stem for stem, *_ in rows]


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="run", type=Path, metavar="DIR", help="default: results/pocket")
    parser.add_argument("--to", type=Path, metavar="DIR", default=ROOT / "build" / "rendered")
    args = parser.parse_args(argv)
    try:
        stems = render(args.run or results_folder() / "pocket", args.to)
    except OSError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(f"{len(stems)} notebooks rendered in {args.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
