"""What several commands share: kinds of arguments and the options of a run. No heavy import."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib.util
import sys
from pathlib import Path

from ..config import PROFILES, RECIPES, Config, resolve, user_path
from ..errors import MEMORY_ADVICE

MODEL = '"pocket" (default, shipped), a saved folder, or a hub id'


def gamma(text: str) -> float:
    """A number from 0 to 1, else argparse's error."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:  # NaN fails too
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a number from 0 (fidelity) to 1 (realism)")
    return value


def given_path(text: str) -> Path:
    """A path with "~" expanded, else argparse's error: "" would mean the folder that one is in."""
    return user_path(_filled(text))


def _filled(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty; a variable that is not set, in quotes, does that")
    return text


def name_or_path(text: str) -> str:
    """A name, an address or a path; "~" at the start of a path is expanded. argparse's error for ""."""
    _filled(text)
    return str(user_path(text)) if text.startswith("~") else text


def setting(text: str) -> tuple[str, object]:
    """ "k=3.0" -> ("k", 3.0), by the type of the Config field; `resolve` then judges name and value."""
    name, equals, value = text.partition("=")
    kind = {f.name: f.type for f in dataclasses.fields(Config)}.get(name, "str")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}; write NAME=VALUE without spaces, such as k=3.0")
    if kind.startswith("str"):
        return name, None if (kind, value) == ("str | None", "None") else name_or_path(value)
    if kind == "bool":
        if value.lower() not in ("true", "false"):
            raise argparse.ArgumentTypeError(
                f"{text!r}: {name} is a switch; allowed: {name}=True, {name}=False"
            )
        return name, value.lower() == "true"
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        raise argparse.ArgumentTypeError(f"{text!r}: {name} is a number ({kind}), such as {name}=3") from None


def add_run_options(parser: argparse.ArgumentParser, example: str) -> None:
    """--profile, --seed, --recipe and -o/--set, the same for train, reproduce and describe."""
    parser.add_argument("--profile", help=f"{', '.join(PROFILES)} (default $IFCSR_PROFILE, else pocket)")
    parser.add_argument("--seed", type=int, default=0, help="root of every random choice (default 0)")
    parser.add_argument(
        "--recipe", choices=tuple(RECIPES), help="settings for a GPU's memory; -o overrides them"
    )
    parser.add_argument(
        "-o",
        "--set",
        nargs="+",
        type=setting,
        metavar="NAME=VALUE",
        default=[],
        action="extend",
        help=f"override config fields, such as {example}",
    )


def overrides(args: argparse.Namespace) -> dict:
    """{field: value} of --recipe, with -o/--set over it."""
    return {**RECIPES.get(args.recipe, {}), **dict(args.set)}


def config(args: argparse.Namespace) -> Config:
    """The Config of --profile, --seed, --recipe and -o/--set."""
    return resolve(args.profile, args.seed, overrides(args))


def add_tile(parser: argparse.ArgumentParser) -> None:
    """--tile of the commands that run a model on photos; `set_tile` obeys it."""
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="make outputs of more than PIXELS x PIXELS in tiles of that "
        "side (default 1024; smaller takes less memory, 0 never)",
    )


def set_tile(model, tile: int | None) -> None:
    """Let a model make tiles of `tile` output pixels; None leaves it as it is. Raises ValueError (Config)."""
    if tile is not None:
        overlap = min(model.cfg.tile_overlap, max(64, tile // 256 * 64))
        model.cfg = model.cfg.replace(tile=tile, tile_overlap=overlap)


def add_backend(parser: argparse.ArgumentParser) -> None:
    """--backend of the commands that run a model on photos; `backend` and `load_model` obey it."""
    parser.add_argument(
        "--backend",
        choices=("auto", "onnx", "torch"),
        default="auto",
        help="onnx: ONNX Runtime on the CPU, shipped models only; torch: any model, and a GPU (default auto: "
        "onnx where it can, else torch)",
    )


def backend(args: argparse.Namespace) -> str:
    """ "onnx" or "torch", of --backend and --model. ValueError, with the reason, where neither can."""
    if args.backend == "torch":
        return "torch"
    from ..lite import SHIPPED, missing

    if not (reason := missing(args.model)):
        return "onnx"
    if args.backend == "onnx":
        raise ValueError(f"--backend onnx: {reason}")
    if importlib.util.find_spec("torch") is None:
        raise ValueError(f"torch is not installed, and {reason}")
    if importlib.util.find_spec("onnxruntime") and args.model in SHIPPED:  # its export is missing or stale
        print(f"note: {reason}; torch is used", file=sys.stderr)
    return "torch"


def load_model(name: str, backend: str):
    """The model of --model on what `backend` chose: an IFCSR, or a lite.LiteModel, which takes arrays."""
    if backend == "onnx":
        from ..lite import SHIPPED, LiteModel

        return LiteModel(SHIPPED[name])
    from ..models import load

    return load(name)


def less_memory(tile: int | None) -> str:
    """What to do when memory ran out with --tile at `tile` output pixels (None: the default, 0: never)."""
    smaller = [t for t in (1024, 512, 256, 128) if t < (1024 if tile is None else tile or 1025)]
    if not smaller:
        return MEMORY_ADVICE
    return f"--tile {smaller[0]} takes less, or close other programs"
