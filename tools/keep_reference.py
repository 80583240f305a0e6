"""Keep a run's tables and figures as the reference, which README and docs show and runs are compared with.

    python tools/keep_reference.py                            all of results/pocket (or $IFCSR_RESULTS/pocket)
    python tools/keep_reference.py gamma_heldout bench_blend  these tables or figures alone
    python tools/keep_reference.py --profile paper --from DIR of another profile, from DIR/paper

They go to results/reference/<profile>, which git tracks, each with its JSON. A file whose bytes and settings
are those of the reference is left alone. Afterwards: python tools/readme_tables.py.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from ifcsr_lib.config import results_folder
from ifcsr_lib.files.results import REFERENCE, atomic, read_json, sha256, sidecar

KINDS = {"tables": ".csv", "figures": ".png"}
PROFILES = ("pocket", "paper")  # the numbers of smoke mean nothing


def found(run: Path, names) -> list[Path]:
    """The tables and figures of a run, or those of `names`.

    Raises FileNotFoundError when there are none, ValueError for a name that is none, and for a file that is
    not the one that its JSON describes.
    """
    paths = [p for kind, suffix in KINDS.items() for p in sorted((run / kind).glob(f"*{suffix}"))]
    if not paths:
        raise FileNotFoundError(f"no tables and no figures in {run}: run `make reproduce` first")
    known = {p.stem for p in paths}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{unknown[0]!r} is not in {run}; there are: {', '.join(sorted(known))}")
    paths = [p for p in paths if not names or p.stem in names]
    for path in paths:
        if not sidecar(path).is_file():
            raise FileNotFoundError(f"{sidecar(path)} is missing: make {path.name} again")
        record = read_json(sidecar(path))
        if record.get("profile") != run.name or record.get("sha256") != sha256(path):
            raise ValueError(f"{sidecar(path)} does not describe {path.name}: make it again")
    return paths


def keep(run: Path, reference: Path, names=()) -> list[Path]:
    """Copy a run's tables and figures with their JSON; return what changed in `reference`.

    run: results/<profile>; reference: the folder of that profile; names: without suffix, () for all. All are
    checked before the first is copied; each is written to a temporary name and renamed. See `found` for the
    errors.
    """
    changed = []
    for path in found(run, names):
        target = reference / path.parent.name / path.name
        if target.is_file() and sidecar(target).is_file() and sha256(target) == sha256(path):
            old, new = read_json(sidecar(target)), read_json(sidecar(path))
            if all(old.get(key) == new.get(key) for key in ("sha256", "depends", "hash")):
                continue
        for source in (path, sidecar(path)):
            with atomic(target.with_name(source.name)) as tmp:
                shutil.copyfile(source, tmp)
        changed.append(target)
    return changed


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="without suffix; default: all")
    parser.add_argument("--profile", choices=PROFILES, default="pocket")
    parser.add_argument("--from", dest="folder", type=Path, help="default: results/, or $IFCSR_RESULTS")
    args = parser.parse_args(argv)
    run = (args.folder or results_folder()) / args.profile
    try:
        changed = keep(run, REFERENCE / args.profile, args.names)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in changed:
        print(path)
    print(f"{len(changed)} kept in {REFERENCE / args.profile}; now run python tools/readme_tables.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
