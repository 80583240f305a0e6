"""upscale: one photo, or every photo of a folder, four times as large."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from ..config import user_path
from ..errors import explain
from .options import MODEL, add_tile, gamma, less_memory, name_or_path, set_tile

TEXT = "Upscale a photo, or every photo of a folder, four times."
STORY = """\
Reads PNG, JPEG, WebP, TIFF and BMP: grey, palette, CMYK, 8 or 16 bit, turned as EXIF says.
Writes RGB of four times the width and height. Alpha (bicubic) and 16 bit are kept where the
format has them, the colour profile too; JPEG and BMP show transparent photos on white. A file
that cannot be read is reported and skipped, and the exit code is then 1. Needs no network with
the pocket model; the same input always gives the same output."""
EXAMPLE = "python -m ifcsr_lib upscale holiday/ holiday_x4/ --gamma 0.5"
SUFFIXES = ("png", "jpg", "webp", "tif", "bmp")  # of --format; any suffix of images.FORMATS may end OUT


def add(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "source",
        metavar="IN",
        type=user_path,
        help="an image file, or a folder (its subfolders are left out)",
    )
    p.add_argument(
        "target",
        metavar="OUT",
        type=user_path,
        help="a folder; for one photo also a file name such as out.png",
    )
    p.add_argument("--gamma", type=gamma, default=0.5, help="0 = fidelity ... 1 = realism (default 0.5)")
    p.add_argument("--model", type=name_or_path, default="pocket", help=MODEL)
    p.add_argument(
        "--format", choices=SUFFIXES, help="of the written files (default png, or the suffix of OUT)"
    )
    p.add_argument(
        "--overwrite", action="store_true", help="replace files in OUT that exist (never IN itself)"
    )
    add_tile(p)


def output_files(
    source: Path, target: Path, kind: str | None = None, overwrite: bool = False
) -> dict[Path, Path]:
    """{photo: file to write} for IN and OUT of `upscale`; every reason to refuse is found before a model
    loads.

    Raises FileNotFoundError or ValueError: missing or empty IN, unknown suffix, contradicting kind, two
    photos with one output name, a file that exists (without overwrite) or that is itself an input.
    """
    from ..files.images import FORMATS, list_images

    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; pass an image file or a folder of images")
    single, suffix = not source.is_dir(), "" if target.is_dir() else target.suffix.lower()
    if not single and (target.is_file() or suffix in FORMATS):
        raise ValueError(f"{source} is a folder and {target} a file; pass a folder for OUT")
    if single and suffix and suffix not in FORMATS:
        raise ValueError(f"{target}: suffix {suffix!r} is unknown; allowed: {' '.join(FORMATS)}, or a folder")
    if single and suffix:
        if kind and FORMATS[suffix] != FORMATS[f".{kind}"]:
            raise ValueError(f"--format {kind} contradicts OUT {target}; leave one of them out")
        jobs = {source: target}
    else:
        photos = [source] if single else list_images(source)
        jobs = {p: target / f"{p.stem}.{kind or 'png'}" for p in photos}
    taken = {}
    for photo, out in jobs.items():
        if (other := taken.setdefault(os.path.normcase(out), photo)) != photo:
            raise ValueError(
                f"{other.name} and {photo.name} would both become {out}; rename one, or run them apart"
            )
    inputs = {p.resolve() for p in jobs}
    if same := [p for p in jobs.values() if p.resolve() in inputs]:
        raise ValueError(f"{same[0]} is an input and would be replaced; choose another folder for OUT")
    if (old := [p for p in jobs.values() if p.exists()]) and not overwrite:
        raise ValueError(
            f"{len(old)} of {len(jobs)} outputs exist, {old[0]} first; pass --overwrite or another OUT"
        )
    return jobs


def upscale_folder(model, jobs: dict[Path, Path], gamma: float) -> int:
    """Upscale each photo of jobs = {photo: file to write} at gamma; return how many failed, each reported on
    stderr.

    model: anything whose `endpoints(lq)` gives Endpoints.
    OSError at writing (disk full, no permission) stops the run.
    """
    from tqdm import tqdm

    from ..files.checks import check_pointer
    from ..files.images import check_images, read_image, upsample, write_image

    failed = 0
    # no bar when stderr is not a terminal
    for source, target in tqdm(jobs.items(), unit="photo", disable=None):
        photo = None
        try:
            check_pointer(source)
            photo = read_image(source)
            check_images(photo.rgb, str(source))
            rgb = model.endpoints(photo.rgb).blend(gamma)
            alpha = (
                None if photo.alpha is None else upsample(photo.alpha, rgb.shape[-1] // photo.alpha.shape[-1])
            )
            write_image(dataclasses.replace(photo, rgb=rgb, alpha=alpha), target)
        except Exception as error:
            if photo and isinstance(error, OSError):
                raise  # the next photo could not be written either
            failed += 1
            text = explain(error, less_memory(getattr(getattr(model, "cfg", None), "tile", None)))
            tqdm.write(f"skipped {'' if str(source) in text else f'{source}: '}{text}", file=sys.stderr)
    return failed


def run(args: argparse.Namespace) -> int:
    jobs = output_files(args.source, args.target, args.format, args.overwrite)
    folder = next(iter(jobs.values())).parent
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} is not writable; choose another OUT")
    from ..models import load

    model = load(args.model)
    set_tile(model, args.tile)
    failed = upscale_folder(model, jobs, args.gamma)
    print(f"{len(jobs) - failed} of {len(jobs)} photos written to {folder} at gamma {args.gamma:g}")
    return 1 if failed else 0
