"""upscale: one photo, or every photo of a folder, four times as large."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from ..config import user_path
from .options import MODEL, gamma, name_or_path, one_line

TEXT = "Upscale a photo, or every photo of a folder, four times."
STORY = """\
Reads PNG, JPEG, WebP, TIFF and BMP, and AVIF and HEIC where the installed Pillow or pillow-heif
can: grey, palette, CMYK, 8 or 16 bit, turned as EXIF says, the first of several frames or pages.
Writes four times the width and height: grey as grey, all else as RGB. Alpha and 16 bit are kept
where the format has them, as are the colour profile, dpi, and of EXIF the date, the camera and
more, but not the place; JPEG and BMP show transparent photos on white. A file that cannot be read
is reported and skipped, and the exit code is then 1. Needs no network with the pocket model; the
same input always gives the same output."""
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
    p.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="make outputs of more than PIXELS x PIXELS in tiles of that "
        "side (default 1024; smaller takes less memory, 0 never)",
    )
    p.add_argument("--gps", action="store_true", help="keep where a photo was taken (default: left out)")


def output_files(
    source: Path, target: Path, kind: str | None = None, overwrite: bool = False
) -> dict[Path, Path]:
    """{photo: file to write} for IN and OUT of `upscale`; every reason to refuse is found before a model
    loads.

    An output has the stem of its photo, or its full name where another photo has the same stem.
    Raises FileNotFoundError or ValueError: missing or empty IN, unknown suffix, contradicting kind, a file
    that exists (without overwrite) or that is itself an input.
    """
    from ..files.images import FORMATS, distinct, list_images

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
        names = distinct(photos, str.casefold)  # photo.jpg and photo.png both live
        jobs = {p: target / f"{name}.{kind or 'png'}" for p, name in zip(photos, names, strict=True)}
    inputs = {p.resolve() for p in jobs}
    if same := [p for p in jobs.values() if p.resolve() in inputs]:
        raise ValueError(f"{same[0]} is an input and would be replaced; choose another folder for OUT")
    if (old := [p for p in jobs.values() if p.exists()]) and not overwrite:
        raise ValueError(
            f"{len(old)} of {len(jobs)} outputs exist, {old[0]} first; pass --overwrite or another OUT"
        )
    return jobs


def upscale_folder(model, jobs: dict[Path, Path], gamma: float, gps: bool = False) -> int:
    """Upscale each photo of jobs = {photo: file to write} at gamma; return how many failed, each reported on
    stderr.

    model: anything whose `endpoints(lq)` gives Endpoints. gps: keep where the photo was taken.
    OSError (disk full, no permission) stops the run.
    """
    from tqdm import tqdm

    from ..files.images import (
        bleed,
        check_images,
        is_grey,
        read_image,
        to_grey,
        upsample_alpha,
        write_image,
    )

    failed = 0
    # no bar when stderr is not a terminal
    for source, target in tqdm(jobs.items(), unit="photo", disable=None):
        try:
            photo = read_image(source)
            for note in photo.notes:
                tqdm.write(f"note: {source}: {note}", file=sys.stderr)
            check_images(photo.rgb, str(source))
            # DECISION D24: the network sees the colours that can be seen, continued below transparency
            lq, alpha = bleed(photo.rgb, photo.alpha), photo.alpha
            rgb = model.endpoints(lq).blend(gamma)
            rgb = to_grey(rgb) if is_grey(lq).all() else rgb
            alpha = None if alpha is None else upsample_alpha(alpha, rgb.shape[-1] // alpha.shape[-1])
            write_image(dataclasses.replace(photo, rgb=rgb, alpha=alpha), target, gps=gps)
        except (ValueError, FileNotFoundError, RuntimeError, MemoryError) as error:
            failed += 1
            text = one_line(error)
            tqdm.write(f"skipped {'' if str(source) in text else f'{source}: '}{text}", file=sys.stderr)
    return failed


def run(args: argparse.Namespace) -> int:
    from ..files.images import left_out

    jobs = output_files(args.source, args.target, args.format, args.overwrite)
    if args.source.is_dir() and (text := left_out(args.source)):
        print(text, file=sys.stderr)
    folder = next(iter(jobs.values())).parent
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} is not writable; choose another OUT")
    from ..models import load

    model = load(args.model)
    if args.tile is not None:
        overlap = min(model.cfg.tile_overlap, max(64, args.tile // 256 * 64))
        model.cfg = model.cfg.replace(tile=args.tile, tile_overlap=overlap)
    failed = upscale_folder(model, jobs, args.gamma, args.gps)
    print(f"{len(jobs) - failed} of {len(jobs)} photos written to {folder} at gamma {args.gamma:g}")
    return 1 if failed else 0
