"""Keep notebooks free of output, except where nbval compares it.

    python tools/strip_notebooks.py                     strip notebooks/*.ipynb (or the files named)
    python tools/strip_notebooks.py --check             change nothing; exit 1 and name those that are not
    clean python tools/strip_notebooks.py --from FOLDER       first take the compared outputs from executed
    copies there, for example results/smoke/executed after
                                                        `python -m ifcsr_lib reproduce --profile smoke`

nbval compares a cell only when it has an execution count. So cells tagged `nbval-check-output` keep output
and count, every other cell loses both. Running it twice changes nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from ifcsr_lib.config import ROOT
from ifcsr_lib.files.results import atomic

TAG = "nbval-check-output"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def tagged(cell) -> bool:
    return cell.cell_type == "code" and TAG in cell.metadata.get("tags", [])


def strip(nb):
    """Strip a notebook in place and return it."""
    nb.metadata = nbformat.from_dict(METADATA)
    nb.nbformat, nb.nbformat_minor = 4, 5
    codes = [cell for cell in nb.cells if cell.cell_type == "code"]
    for cell in nb.cells:
        cell.metadata = nbformat.from_dict(
            {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        )
    for number, cell in enumerate(codes, 1):
        if not tagged(cell):
            cell.outputs, cell.execution_count = [], None
        elif cell.execution_count is not None or cell.outputs:
            cell.execution_count = number  # the same whatever ran in which order
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = number
                if "metadata" in output:
                    output.metadata = nbformat.from_dict({})
    return nb


def refresh(nb, executed) -> None:
    """Copy output and count of the tagged cells, found by cell id, from an executed copy.

    Raises ValueError when a tagged cell is missing there, or has another source or no count.
    """
    ran = {cell.id: cell for cell in executed.cells}
    for cell in filter(tagged, nb.cells):
        other = ran.get(cell.id)
        if other is None or other.source != cell.source or other.execution_count is None:
            raise ValueError(
                f"cell {cell.source.splitlines()[0]!r} was not run in this form: run the notebook again"
            )
        cell.outputs, cell.execution_count = other.outputs, other.execution_count


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="default: notebooks/*.ipynb")
    parser.add_argument(
        "--check", action="store_true", help="change nothing, exit 1 when a notebook is not clean"
    )
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FOLDER", help="folder of executed copies"
    )
    args = parser.parse_args(argv)
    if args.source and not args.source.is_dir():
        parser.error(
            f"--from {args.source}: no such folder; run `python -m ifcsr_lib reproduce --profile smoke` first"
        )
    bad = 0
    for path in args.files or sorted((ROOT / "notebooks").glob("*.ipynb")):
        try:
            text = path.read_text(encoding="utf-8")
            nb = nbformat.reads(text, as_version=4)
            if args.source and (args.source / path.name).is_file():
                refresh(nb, nbformat.read(args.source / path.name, as_version=4))
            strip(nb)
            nbformat.validate(nb)
        except (OSError, ValueError, nbformat.ValidationError) as error:
            print(f"{path}: {str(error).splitlines()[0]}", file=sys.stderr)
            bad += 1
            continue
        clean = nbformat.writes(nb) + "\n"
        if clean == text:
            continue
        if args.check:
            print(f"{path}: not clean; run python tools/strip_notebooks.py", file=sys.stderr)
            bad += 1
            continue
        with atomic(path) as tmp:
            tmp.write_bytes(clean.encode())
        print(f"{path}: written")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
