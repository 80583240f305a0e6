"""What a user can meet ends in one line: pipes, full and closed disks, memory, what nobody foresaw."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import torch

from ifcsr_lib import cli, errors
from ifcsr_lib.cli import main
from ifcsr_lib.cli.options import less_memory
from ifcsr_lib.cli.upscale import upscale_folder
from ifcsr_lib.config import ROOT
from ifcsr_lib.control import Endpoints
from ifcsr_lib.files.checks import POINTER
from ifcsr_lib.files.images import upsample, write_image


@pytest.fixture(autouse=True)
def _logs(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(errors, "_logs", [])


def photo(path, seed=0):
    return write_image(torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(seed)), path)


def error(argv, capsys):
    """The one line that the command prints with exit code 2."""
    assert main([str(a) for a in argv]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1 and "Traceback" not in text
    return text


RAISED = {
    "key": (KeyError("adapters"), "unexpected KeyError: adapters"),
    "attribute": (AttributeError("no x"), "unexpected AttributeError"),
    "runtime": (RuntimeError("mat1 and mat2"), "unexpected RuntimeError"),
    "recursion": (RecursionError("deep"), "unexpected RecursionError"),
    "import": (ModuleNotFoundError("No module named 'peft'", name="peft"), "'peft' is missing"),
    "memory": (MemoryError(), "out of memory; "),
    "cuda": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory; "),
    "system": (PermissionError(13, "Permission denied", "a.png"), "a.png: you have no permission"),
    "pipe": (BrokenPipeError(32, "Broken pipe"), "has ended"),  # of another pipe than the output's
}


@pytest.mark.parametrize("command", [module.__name__.rpartition(".")[2] for module in cli.COMMANDS])
@pytest.mark.parametrize("kind", RAISED)
def test_whatever_a_command_raises_is_one_line(command, kind, capsys, monkeypatch):
    def run(args):
        raise RAISED[kind][0]

    module = next(m for m in cli.COMMANDS if m.__name__.endswith(f".{command}"))
    monkeypatch.setattr(module, "run", run)
    needed = {"upscale": ["a", "b"], "explore": ["a"], "evaluate": ["a"], "benchmark": ["realsr"]}
    argv = [command, *needed.get(command, ["--stage", "1"] if command == "train" else [])]
    text = error(argv, capsys)
    assert RAISED[kind][1] in text and "Errno" not in text
    advice = {"upscale": "--tile 512", "explore": "--tile 512", "train": "--recipe"}
    if kind in ("memory", "cuda"):
        assert advice.get(command, "close other programs") in text
        assert "--tile" not in text or command in ("upscale", "explore")


def test_less_memory_names_a_smaller_tile():
    assert [less_memory(t).split()[:2] for t in (None, 0, 1024, 512, 300, 256)] == [
        ["--tile", n] for n in ("512", "1024", "512", "256", "256", "128")
    ]
    assert "--tile" not in less_memory(128)


class OutOfMemory:
    """A model without a network, for which some photos are too large."""

    def endpoints(self, lq):
        if lq.shape[-1] > 50:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate"
            )
        return Endpoints(upsample(lq), upsample(lq))


def test_a_photo_too_large_for_the_memory_is_skipped_with_advice(tmp_path, capsys):
    small = photo(tmp_path / "a.png")
    large = write_image(torch.rand(1, 3, 40, 60), tmp_path / "b.png")
    jobs = {large: tmp_path / "x" / "b.png", small: tmp_path / "x" / "a.png"}
    assert upscale_folder(OutOfMemory(), jobs, 0.5) == 1 and jobs[small].exists()
    said = capsys.readouterr().err
    assert f"skipped {large}: out of memory; --tile 512 takes less" in said and "alloc_cpu" not in said


@pytest.mark.parametrize("argv", [["upscale", "a.png", "out.png"], ["explore", "a.png", "--no-open"]])
def test_memory_runs_out_in_a_real_model(argv, tmp_path, tiny_backbone, monkeypatch, capsys):
    from ifcsr_lib.models import IFCSR

    def full(*args):
        return torch.empty(2**60, dtype=torch.uint8)  # the allocator's own words

    photo(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(IFCSR, "both", full)
    code = main([*argv, "--model", str(tiny_backbone), "--tile", "512"])
    said = capsys.readouterr().err
    assert code == (1 if argv[0] == "upscale" else 2)
    assert "out of memory; --tile 256 takes less" in said and said.count("\n") == 1, said


def test_explore_makes_tiles_as_upscale_does(tmp_path, tiny_backbone, monkeypatch, capsys):
    from ifcsr_lib import models

    seen, own = [], models.tiled
    monkeypatch.setattr(
        models, "tiled", lambda f, x, tile, *a, **k: seen.append(tile) or own(f, x, tile, *a, **k)
    )
    photo(tmp_path / "a.png")
    argv = ["explore", str(tmp_path / "a.png"), "--model", str(tiny_backbone), "--no-open"]
    assert main([*argv, "--out", str(tmp_path / "x.html"), "--tile", "128"]) == 0 and seen == [128]
    assert main([*argv, "--out", str(tmp_path / "x.html")]) == 0 and seen == [128]
    assert "multiples of 64" in error([*argv, "--tile", "100"], capsys)


def test_a_photo_that_may_not_be_read_is_skipped(tmp_path, capsys, monkeypatch):
    """No permission, a share that has gone: reading one photo fails, the others are written."""
    from ifcsr_lib.files import images

    a, b = photo(tmp_path / "a.png"), photo(tmp_path / "b.png", 1)
    own = images.read_image

    def read(path):
        if path == a:
            raise PermissionError(13, "Permission denied", str(path))
        return own(path)

    monkeypatch.setattr(images, "read_image", read)
    jobs = {p: tmp_path / "out" / p.name for p in (a, b)}
    assert upscale_folder(OutOfMemory(), jobs, 0.5) == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b.png"]
    said = capsys.readouterr().err
    assert f"skipped {a}: you have no permission" in said and "Errno" not in said


def test_a_full_disk_is_no_reason_for_a_setting_that_has_no_effect(tmp_path, monkeypatch, capsys):
    def full(self, data):
        raise OSError(28, "No space left on device")

    photo(tmp_path / "a.png")
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="no disk space") as info:
        upscale_folder(OutOfMemory(), {tmp_path / "a.png": tmp_path / "out" / "a.png"}, 0.5)
    assert "choose another place" in str(info.value) and "IFCSR" not in str(info.value)


def test_a_pointer_instead_of_a_photo(tmp_path, capsys):
    for name in ("a.png", "a.ifcsr.zip"):
        (tmp_path / name).write_bytes(POINTER + b"\noid sha256:00\nsize 1\n")
        assert "git lfs pull" in error(["explore", tmp_path / name, "--no-open"], capsys)
    assert main(["upscale", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--model", "pocket"]) == 1
    assert "git lfs pull" in capsys.readouterr().err


def shell(line, **env):
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    line = line.replace("PY", f"{sys.executable} -m ifcsr_lib")
    return subprocess.run(
        ["bash", "-c", line], env=env, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    "line",
    [
        "PY --help | true",
        "PY describe --help | true",
        "PY data | true",
        "PY describe --profile smoke | true",
        "PY data none-such 2>&1 | true",
        "PY --help 2>&1 | true",
    ],
)
def test_the_reader_of_a_pipe_ends(line):
    """Quietly, with SIGPIPE's code: `true` has ended long before the first line is there."""
    done = shell(f"{line}; echo ${{PIPESTATUS[0]}}")
    codes = ("0", "141") if "--help" in line else ("141",)  # argparse itself drops a help that nobody reads
    assert done.stderr == "" and done.stdout.strip() in codes, done


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device that is always full")
def test_output_into_a_full_disk():
    done = shell("PY data >/dev/full")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done
    assert "no disk space" in done.stderr
    assert shell("PY data >&-").returncode == 0


def test_a_flat_picture_among_others(tmp_path, capsys):
    """The table says NaN, the mean is of the rest, and one line names it."""
    for name, x in (("a", torch.rand(1, 3, 192, 192)), ("sky", torch.full((1, 3, 192, 192), 0.5))):
        write_image(x, tmp_path / "sr" / f"{name}.png")
    argv = ["evaluate", str(tmp_path / "sr"), "--metrics", "niqe-pocket", "--out", str(tmp_path / "t.csv")]
    assert main(argv) == 0
    said = capsys.readouterr()
    assert "Warning" not in said.err and "LinAlg" not in said.out
    (line,) = (row for row in said.out.splitlines() if "without" in row)
    assert "niqe-pocket: mean of 1 of 2 images, without sky (a picture of one colour" in line
    scores = pd.read_csv(tmp_path / "t.csv", index_col="image")["niqe-pocket"]
    assert scores.isna().tolist() == [False, True]
    (mean,) = (row.split()[1] for row in said.out.splitlines() if "lower is better" in row)
    assert float(mean) == pytest.approx(scores["a"], abs=1e-4)


def test_several_processes_say_it_once(tmp_path):
    """No log lines and no traceback of torch's launcher, and not the same line from each process."""
    for side, pixels in (("LR", 16), ("HR", 64)):
        write_image(torch.rand(1, 3, pixels, pixels), tmp_path / "data" / "realsr" / side / "a.png")
    line = "PY benchmark realsr --processes 2 --metrics psnr --gammas 0 --model none-such/x"
    done = shell(line, IFCSR_DATA=str(tmp_path / "data"), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    assert done.returncode == 2 and done.stderr.startswith("error: "), done
    assert done.stderr.count("\n") == 1 and "none-such/x" in done.stderr, done.stderr


@pytest.mark.parametrize("command", ["evaluate", "explore"])
def test_a_place_that_takes_no_file_is_said_before_the_work(command, tmp_path, capsys, monkeypatch):
    from ifcsr_lib import models
    from ifcsr_lib.evaluate import metrics

    photo(tmp_path / "in" / "a.png")
    out = tmp_path / ("out.csv" if command == "evaluate" else "out.html")
    out.mkdir()
    monkeypatch.setattr(metrics, "_score", lambda *a: pytest.fail("it was scored"))
    monkeypatch.setattr(models, "load", lambda *a: pytest.fail("a model was loaded"))
    source = tmp_path / "in" if command == "evaluate" else tmp_path / "in" / "a.png"
    more = ["--metrics", "niqe-pocket"] if command == "evaluate" else ["--no-open"]
    assert "it is a folder; choose another name" in error([command, source, *more, "--out", out], capsys)
    assert not list(out.iterdir()) and not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*"))


CLOSED = """import os, sys
sys.path.insert(0, {root!r})
from ifcsr_lib import cli
from ifcsr_lib.cli import describe
def run(args):
    print("words for the user"), print("and a note", file=sys.stderr)
    with open({out!r}, "w") as file:
        os.write(1, b"words of C"), os.write(2, b"words of C")
        file.write(str(file.fileno()))
    return 0
describe.run = run
sys.exit(cli.main(["describe"]))"""


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams(tmp_path, closed):
    """As cron jobs and services may have them: the first file that is opened would get the stream's number,
    and with it all that is printed.
    """
    script, out = tmp_path / "script.py", tmp_path / "out.txt"
    script.write_text(CLOSED.format(root=str(ROOT), out=str(out)))
    done = subprocess.run(["bash", "-c", f"{sys.executable} {script} {closed}"], timeout=300, check=False)
    assert done.returncode == 0 and int(out.read_text()) > 2, out.read_text()


def test_a_name_that_looks_like_an_option(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "-dash.png")
    with pytest.raises(SystemExit):
        main(["upscale", "-dash.png", "out.png"])
    assert "write the file -dash.png as ./-dash.png" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["upscale", "--gama", "1", "a.png"])
    assert "./" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["upscale", "", "out"],
        ["upscale", "a.png", ""],
        ["upscale", "a.png", "b.png", "--model", ""],
        ["explore", ""],
        ["explore", "a.png", "--out", ""],
        ["evaluate", "", "hr"],
        ["evaluate", "sr", ""],
        ["data", "realsr", "--from", ""],
    ],
)
def test_an_empty_argument_is_not_this_folder(argv, capsys):
    """`upscale "$PHOTOS" out` with PHOTOS not set would take every picture of the folder one is in."""
    with pytest.raises(SystemExit):
        main(argv)
    assert "it is empty; a variable that is not set" in capsys.readouterr().err


def test_names_with_control_characters_stay_one_line(tmp_path, capsys):
    """A name may neither break a line in two nor colour the terminal."""
    bad = tmp_path / "a\n\x1b[31m.png"
    bad.touch()
    assert upscale_folder(OutOfMemory(), {bad: tmp_path / "b.png"}, 0.5) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and "\x1b" not in text and text.count(r"a\n\x1b[31m.png") == 1, text
