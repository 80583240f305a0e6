"""evaluate: metrics of a folder of images."""

from __future__ import annotations

import argparse
import warnings

from .options import given_path

TEXT = "Score images, one row per image, and print the means."
STORY = """\
Protocol of the paper's peers: 8-bit RGB, no border cropped, PSNR and SSIM on luma. Files are
matched by full name; photo.png also with photo.bmp, where only one file of each folder is called
photo. A metric whose weights are missing reads "not run: needs ...". An image on which a metric is
undefined has NaN and is left out of the mean, which is said. Without HR only metrics that need no
reference are computed."""
EXAMPLE = "python -m ifcsr_lib evaluate holiday_x4/ originals/ --metrics psnr ssim --out scores.csv"


def add(p: argparse.ArgumentParser) -> None:
    p.add_argument("sr", metavar="SR", type=given_path, help="the folder of images to score")
    p.add_argument(
        "hr", metavar="HR", type=given_path, nargs="?", help="the folder of references, named alike"
    )
    p.add_argument("--metrics", nargs="+", metavar="NAME", help="such as psnr ssim lpips niqe (default: all)")
    p.add_argument(
        "--out", type=given_path, metavar="CSV", help="also write the table there (an older one is replaced)"
    )


def run(args: argparse.Namespace) -> int:
    if args.out and args.out.suffix != ".csv":
        raise ValueError(f"--out {args.out}; allowed: a name that ends in .csv")
    from ..evaluate import left_out, score, summary
    from ..files.results import atomic, check_writable

    if args.out:
        check_writable(args.out)
    table = score(args.sr, args.hr, args.metrics)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said below
        means = summary(table)
    print(table.to_string(float_format="{:.4f}".format), f"\nmean of {len(table)} images")
    for name, value in means.items():
        better = "lower" if table.attrs["lower_better"][name] else "higher"
        print(f"  {name:12s} {value if isinstance(value, str) else f'{value:.4f}':>10}  ({better} is better)")
    for text in left_out(table).values():
        print(f"  {text}")
    if args.out:
        with atomic(args.out) as temporary:
            table.to_csv(temporary, float_format="%.6f", lineterminator="\n", errors="backslashreplace")
        print(f"written: {args.out}")
    return 0
