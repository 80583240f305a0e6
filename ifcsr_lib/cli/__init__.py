"""The command line: python -m ifcsr_lib COMMAND; --help lists the commands.

One file per command, each with TEXT, STORY and EXAMPLE for its help, `add(parser)` for its arguments and
`run(args)`, which returns the exit code. Heavy imports wait inside `run`, so that help needs no torch.

Exit codes: 0 done; 1 some images failed (each is reported, the others are written) or a data set is not
    complete;
2 wrong usage, or an error that stopped everything; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys

from .. import __version__
from . import benchmark, data, describe, evaluate, explore, protocol, reproduce, train, upscale
from .options import one_line

COMMANDS = (upscale, explore, evaluate, data, benchmark, protocol, train, reproduce, describe)


def main(argv: list[str] | None = None) -> int:
    """Run one command (argv without the program name; None takes sys.argv) and return its exit code."""
    # a file name that the terminal cannot show must not decide about the work
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else list(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("stopped: every file written so far is complete", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        if os.environ.get("IFCSR_DEBUG") == "1":
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m ifcsr_lib",
        formatter_class=raw,
        description="IFCSR: 4x super-resolution of real photographs, with a slider from fidelity (gamma 0) "
        "to realism (gamma 1).",
        epilog="Each command has its own --help. IFCSR_DEBUG=1 shows tracebacks.",
    )
    parser.add_argument("--version", action="version", version=f"ifcsr_lib {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in COMMANDS:
        command = commands.add_parser(
            module.__name__.rpartition(".")[2],
            help=module.TEXT,
            formatter_class=raw,
            description=f"{module.TEXT}\n\n{module.STORY}",
            epilog=f"example:\n  {module.EXAMPLE}",
        )
        module.add(command)
        command.set_defaults(run=module.run)
    return parser
