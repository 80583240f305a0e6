"""The command line: ifcsr COMMAND, or python -m ifcsr_lib COMMAND; --help lists the commands.

One file per command, each with TEXT, STORY and EXAMPLE for its help, `add(parser)` for its arguments and
`run(args)`, which returns the exit code. Heavy imports wait inside `run`, so that help needs no torch.

Exit codes: 0 done; 1 some images failed (each is reported, the others are written) or a data set is not
    complete;
2 wrong usage, or an error that stopped everything; 130 interrupted; 141 when the reader of the output has
    ended (`| head`).

An error ends in one line on stderr (errors.explain); IFCSR_DEBUG=1 raises it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import time

from .. import __version__
from ..errors import MEMORY_ADVICE, explain
from ..files.checks import printable
from . import benchmark, data, describe, evaluate, explore, protocol, reproduce, train, upscale
from .options import less_memory

PATIENCE = 30.0  # seconds; the first process may start that much later on a busy machine
PROGRAM = "python -m ifcsr_lib"
COMMANDS = (upscale, explore, evaluate, data, benchmark, protocol, train, reproduce, describe)


def main(argv: list[str] | None = None) -> int:
    """Run one command (argv without the program name; None takes sys.argv) and return its exit code."""
    _open_streams()
    # a file name that the terminal cannot show must not decide about the work
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(argv)
        finally:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()  # what is printed fails here at the latest, not while Python ends
    except OSError as error:
        if _drop_output():
            return 141  # 128 + SIGPIPE, as other programs have it
        return _tell(error, MEMORY_ADVICE)  # such as output into a file on a full disk


def _open_streams() -> None:
    """Put /dev/null where a stream was closed (`>&-`, no console): else the first file that is opened gets
    its number, and all that is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  open until the end


class _Parser(argparse.ArgumentParser):
    """Says what to do about a file whose name looks like an option."""

    given: tuple[str, ...] = ()

    def error(self, message: str):
        files = [text for text in self.given if text.startswith("-") and os.path.lexists(text)]
        more = f"; write the file {printable(files[0])} as ./{printable(files[0])}" if files else ""
        super().error(message + more)


def _run(argv: list[str] | None) -> int:
    _Parser.given = tuple(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else list(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("stopped: every file written so far is complete", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001  nobody but a developer reads tracebacks
        return _tell(error, _memory_advice(args))


def _tell(error: Exception, memory: str) -> int:
    if os.environ.get("IFCSR_DEBUG") == "1":
        raise error
    text = explain(error, memory)
    if os.environ.get("RANK", "0") != "0":
        time.sleep(PATIENCE)  # what ends process 0 too is said once: the launcher ends this one meanwhile
    print(f"error: {text}", file=sys.stderr)
    return 2


def _drop_output() -> bool:
    """Quietly drop what stdout and stderr cannot get rid of; True when a reader of theirs has ended."""
    ended = False
    for stream in filter(None, (sys.stdout, sys.stderr)):
        broken = _broken(stream)
        ended = ended or broken
        try:
            stream.flush()
        except (OSError, ValueError):
            broken = True
        if broken:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return ended


def _broken(stream) -> bool:
    """True for a pipe without a reader. A flush tells nothing after a failed print, which drops its text."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream without a file, Windows
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


def _memory_advice(args: argparse.Namespace) -> str:
    if hasattr(args, "tile"):
        return less_memory(args.tile)
    if args.command == "train":
        return 'choose a --recipe for less memory ("12 GB"), or -o batch=1 gradient_accumulation=4'
    return MEMORY_ADVICE


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    script = os.path.basename(sys.argv[0]).removesuffix(".exe")
    program = "ifcsr" if script == "ifcsr" else PROGRAM  # help names the one that was typed
    parser = _Parser(
        prog=program,
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
            epilog=f"example:\n  {module.EXAMPLE.replace(PROGRAM, program)}",
        )
        module.add(command)
        command.set_defaults(run=module.run, command=command.prog.split()[-1])
    return parser
