"""explore: one photo, or a saved pair, as a page with the slider."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..files.checks import check_pointer, oddity, printable
from ..files.results import check_writable
from .options import (
    MODEL,
    add_backend,
    add_tile,
    backend,
    gamma,
    given_path,
    load_model,
    name_or_path,
    set_tile,
)

TEXT = "Upscale one photo and open a page with the slider."
STORY = """\
Runs the network once, writes one page that holds both endpoints and the slider, and opens it in
the browser; the page needs no Python afterwards. A pair written by Endpoints.save (*.ifcsr.zip)
needs no model at all. Transparency is shown on white. "sample" is a held-out photo of the
installed packages, degraded (preset light)."""
EXAMPLE = "python -m ifcsr_lib explore photo.jpg --out photo.html"
PAIR = ".ifcsr.zip"


def add(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "photo", metavar="PHOTO", type=given_path, help='an image file, a pair (*.ifcsr.zip), or "sample"'
    )
    p.add_argument("--model", type=name_or_path, default="pocket", help=MODEL)
    p.add_argument("--gamma", type=gamma, help="where the slider starts (default 0.5, or what the pair says)")
    p.add_argument(
        "--out", type=given_path, metavar="HTML", help="the page to write (default PHOTO_explore.html, here)"
    )
    add_tile(p)
    add_backend(p)
    p.add_argument("--no-open", action="store_true", help="write the page, start no browser")


def run(args: argparse.Namespace) -> int:
    sample = str(args.photo) == "sample"
    name = args.photo.name.removesuffix(PAIR) if args.photo.name.endswith(PAIR) else args.photo.stem
    out = args.out or Path(f"{name}_explore.html")
    if out.suffix.lower() != ".html":
        raise ValueError(f"--out {out}; allowed: a name that ends in .html")
    if not sample and args.photo.is_dir():
        raise ValueError(f"{args.photo} is a folder; explore shows one photo, pass an image file")
    if not sample and (odd := oddity(args.photo)):
        raise ValueError(f"{args.photo} is {odd}; pass an image file")
    if not sample and not args.photo.is_file():
        raise FileNotFoundError(
            f'{args.photo} does not exist; pass an image file, a *.ifcsr.zip, or "sample"'
        )
    check_pointer(args.photo)
    check_writable(out)
    explorer = _explorer(args, name, sample)
    explorer.save_html(out)
    print(f"written: {out} ({out.stat().st_size / 1e6:.1f} MB)")
    if not args.no_open:
        import webbrowser

        if not webbrowser.open(out.resolve().as_uri()):
            print("no browser could be started here; open the file in one")
    return 0


def _explorer(args: argparse.Namespace, name: str, sample: bool):
    """What writes the page of a pair, of the sample, or of a photo; only a pair needs no model."""
    name = printable(name)
    if args.photo.name.endswith(PAIR):
        return _of_pair(args, name)
    if sample and args.backend == "onnx":
        raise ValueError('"sample" is degraded with torch; pass an image file, or leave --backend away')
    if not sample and backend(args) == "onnx":
        return _plain(args, name)
    from ..explorer import Explorer
    from ..files.images import check_images, on_white, read_image

    hr = None
    if sample:
        from ..data import HELDOUT_INDEX, load_photo, photos
        from ..degradation import degrade

        photo = photos("heldout")[0]
        name, hr = photo.name, load_photo(photo)
        lq = degrade(hr, 0, "light", HELDOUT_INDEX)
    else:
        shot = read_image(args.photo)
        lq = on_white(shot.rgb, shot.alpha)  # the page knows no alpha
        check_images(lq, str(args.photo))
    model = load_model(args.model, "torch")
    set_tile(model, args.tile)
    return Explorer(model.endpoints(lq), lq, hr, names=[name], model=model, gamma=args.gamma)


def _of_pair(args: argparse.Namespace, name: str):
    from ..files import portable
    from ..lite import Pair
    from ..lite.page import Page

    images, made = portable.read(args.photo)
    ends, count = Pair(**images), len(images["x_fid"])
    names = [name] if count == 1 else [f"{name} {i}" for i in range(count)]
    return Page(ends, made, made["gamma"] if args.gamma is None else args.gamma, names)


def _plain(args: argparse.Namespace, name: str):
    """The page of a photo without torch."""
    from ..files import portable
    from ..files.pixels import check_images, on_white, read_image
    from ..lite.page import Page

    shot = read_image(args.photo)
    lq = on_white(shot.rgb, shot.alpha)
    check_images(lq, str(args.photo))
    model = load_model(args.model, "onnx")
    set_tile(model, args.tile)
    made = portable.describe(model)
    return Page(model.endpoints(lq), made, 0.5 if args.gamma is None else args.gamma, [name], lq)
