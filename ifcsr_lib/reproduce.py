"""All notebooks in order through papermill, a progress line each. Nothing is ever run in place."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from .config import ROOT, resolve, user_path
from .files.results import atomic

PARAMETERS = {"profile", "seed", "overrides"}
NEEDED = 10**9  # bytes: checkpoints, pairs and endpoints of a pocket run, with room
CELL_LIMIT = {"smoke": 600, "pocket": 3600}  # seconds a cell; a paper-scale cell trains for a day and more


def notebooks(only=None) -> list[Path]:
    """The notebooks in order: those with a number below 90, or the ones that `only` names, such as ["02",
    "03"].

    Raises FileNotFoundError when there are none, ValueError for a name in `only` that fits none.
    """
    found = sorted((ROOT / "notebooks").glob("[0-8][0-9]_*.ipynb"))
    if not found:
        raise FileNotFoundError(
            f"no notebooks in {ROOT / 'notebooks'}: `reproduce` needs the whole repository"
        )
    for name in only or ():
        if not any(path.name.startswith(name) for path in found):
            raise ValueError(
                f"only={name!r} fits no notebook; allowed: {', '.join(path.stem for path in found)}"
            )
    return [path for path in found if only is None or path.name.startswith(tuple(only))]


def reproduce(profile: str = "pocket", seed: int = 0, overrides: dict | None = None, only=None) -> list[Path]:
    """Run the notebooks for one config; tables and figures go to cfg.results, executed copies to executed/ in
    there.

    profile, seed, overrides: as in `config.resolve`, checked before anything runs. only: see `notebooks`.
    Returns the executed notebooks. Raises RuntimeError naming notebook, cell and error at the first failure,
    OSError when the disk is full, ValueError for a notebook whose parameters are not exactly profile, seed
    and overrides.
    """
    cfg = resolve(profile, seed, overrides)
    todo = notebooks(only)
    for path in todo:
        check_parameters(path)
    folder = cfg.results / "executed"
    with atomic(folder / "writable") as tmp:  # complains now, not after the first notebook
        tmp.touch()
    (folder / "writable").unlink()
    if (free := shutil.disk_usage(folder).free) < NEEDED:
        raise OSError(
            f"no disk space: {free:,} bytes are free in {folder}, a run needs {NEEDED:,}; "
            "free some, or set IFCSR_RESULTS to a folder on a larger disk"
        )
    parameters = {"profile": cfg.profile, "seed": cfg.seed, "overrides": overrides or {}}
    print(f"{len(todo)} notebooks, profile {cfg.profile}, seed {cfg.seed}, config {cfg.hash}", flush=True)
    begin, done = time.monotonic(), []
    with _kernel_environment():
        for i, path in enumerate(todo, 1):
            os.environ["IFCSR_NOTEBOOK"] = path.name  # for provenance records
            print(f"[{i}/{len(todo)}] {path.stem} ...", flush=True)
            start = time.monotonic()
            done.append(_run(path, folder / path.name, parameters, CELL_LIMIT.get(cfg.profile)))
            print(f"[{i}/{len(todo)}] {path.stem} ... {_minutes(time.monotonic() - start)}", flush=True)
    print(f"done in {_minutes(time.monotonic() - begin)}; results in {cfg.results}", flush=True)
    return done


def check_parameters(path: Path) -> None:
    """Raise ValueError unless the notebook takes exactly `PARAMETERS` (papermill itself only warns)."""
    import papermill

    names = set(papermill.inspect_notebook(str(path)))
    if names != PARAMETERS:
        raise ValueError(
            f"{path} takes the parameters {sorted(names)}; its cell tagged 'parameters' must set exactly "
            f"{sorted(PARAMETERS)}"
        )


def _run(path: Path, target: Path, parameters: dict, limit: int | None) -> Path:
    """Run one notebook; `target` is replaced when it succeeds, otherwise the attempt is kept as
    <name>.failed.ipynb.
    """
    import papermill

    failed = target.with_suffix(".failed.ipynb")
    with atomic(target) as tmp:
        try:
            papermill.execute_notebook(
                str(path),
                str(tmp),
                parameters,
                kernel_name="python3",
                cwd=str(ROOT),
                start_timeout=180,
                execution_timeout=limit,
                progress_bar={"desc": "  cells", "leave": False, "disable": None},
            )
        except Exception as error:
            if tmp.is_file():
                os.replace(tmp, failed)
            raise RuntimeError(_story(path, failed, error)) from error
    failed.unlink(missing_ok=True)
    return target


def _story(path: Path, failed: Path, error: Exception) -> str:
    """What failed where, in three lines."""
    text = getattr(error, "evalue", str(error).partition("\n")[0])
    last = f"{getattr(error, 'ename', type(error).__name__)}: {text}"
    dead = " (its kernel died: out of memory?)" if "DeadKernel" in type(error).__name__ else ""
    cell = "a cell"
    with contextlib.suppress(OSError, ValueError, IndexError):
        codes = [
            c for c in json.loads(failed.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"
        ]
        number = sum(c["metadata"]["papermill"]["status"] != "pending" for c in codes)
        cell = f"code cell {number}, which begins {''.join(codes[number - 1]['source']).splitlines()[0]!r}"
    return f"{path.name} failed in {cell}{dead}\n  {last}\n  executed so far: {failed}"


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)} min {seconds % 60:.0f} s" if seconds >= 60 else f"{seconds:.0f} s"


@contextlib.contextmanager
def _kernel_environment():
    """Kernel `python3` is this interpreter, whatever is registered on the machine, and finds ifcsr_lib
    anywhere.
    """
    from ipykernel.kernelspec import write_kernel_spec

    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        # its command is sys.executable; below an error it only warns about unencrypted loopback, once a
        # notebook
        write_kernel_spec(Path(folder) / "kernels" / "python3", extra_arguments=["--log-level=ERROR"])
        for name, first in (("JUPYTER_PATH", folder), ("PYTHONPATH", str(ROOT))):
            os.environ[name] = os.pathsep.join(filter(None, [first, before.get(name)]))
        # relative to where you typed, kernels run in ROOT
        for name in {"IFCSR_RESULTS", "IFCSR_DATA"} & set(before):
            os.environ[name] = os.path.abspath(user_path(before[name])) if before[name] else ""
        os.environ.setdefault("PYTHONHASHSEED", "0")
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
