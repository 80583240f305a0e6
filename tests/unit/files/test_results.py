"""results.py: written whole or not at all, deterministic bytes, provenance without machine paths, clear
refusals.
"""

import errno
import json
import os
import subprocess
import sys
import time

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ifcsr_lib import results
from ifcsr_lib.config import ROOT, resolve
from ifcsr_lib.files.checks import POINTER

matplotlib.use("Agg")


@pytest.fixture
def cfg(tmp_path):
    return resolve("smoke")


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "gamma": [0.0, 0.1, 1.0],
            "psnr": [28.123456789, np.nan, 22.0],
            "niqe": ["1", "", "not run: needs x.pth"],
        }
    )


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_atomic_replaces_only_on_success(tmp_path):
    path = tmp_path / "new" / "a.bin"
    with results.atomic(path) as tmp:
        tmp.write_bytes(b"one")
        assert tmp.suffix == path.suffix and tmp.parent == path.parent and not path.exists()
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), results.atomic(path) as tmp:
            tmp.write_bytes(b"half")
            raise error
    assert path.read_bytes() == b"one" and names(path.parent) == ["a.bin"]


KILLED = """
import os, signal, sys
from ifcsr_lib import results
with results.atomic(sys.argv[1]) as tmp:
    tmp.write_bytes(b"half")
    print(tmp.name, flush=True)
    {}
"""


@pytest.fixture
def writer(tmp_path):
    """writer(name, last line): a process that is inside of `atomic`, and the name of its temporary file."""
    running = []

    def start(name, last):
        argv = [sys.executable, "-c", KILLED.format(last), str(tmp_path / name)]
        running.append(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT))
        return running[-1], running[-1].stdout.readline().strip()

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.skipif(os.name != "posix", reason="elsewhere only age tells")
@pytest.mark.parametrize(
    "name", ["a.png", "b.safetensors", "no suffix", "x" * 240 + ".png", "gr\u00fcn.ifcsr.zip"]
)
def test_what_a_kill_left_goes_with_the_next_write_and_nothing_else(tmp_path, writer, monkeypatch, name):
    """A killed process's file goes, a running one's stays, and so do names that only look alike."""
    monkeypatch.setattr(results, "_SWEPT", set())
    running, busy = writer(name, "signal.pause()")
    killed, left = writer(name, "os.kill(os.getpid(), signal.SIGKILL)")
    killed.wait()
    assert names(tmp_path) == sorted([left, busy])
    others = [".a.tmp.png", "a.12345678.tmp.png", ".a.1234567g.tmp.png", ".git", f"{left}.b.txt"]
    for other in others:
        (tmp_path / other).write_bytes(b"")
    with results.atomic(tmp_path / "other.txt") as tmp:
        tmp.write_bytes(b"x")
    assert names(tmp_path) == sorted([busy, "other.txt", *others])
    running.terminate()
    running.wait()
    assert [p.name for p in results.sweep(tmp_path)] == [busy]


def test_files_whose_process_is_not_known_go_by_age(tmp_path):
    """Of before processes were in the names, and of another machine: a day."""
    alike = [".a.0123abcd.tmp.png", ".a.b.0123abcd.tmp", ".a.00000000-1-0123abcd.tmp.csv"]
    own = f".a.{results._machine()}-{os.getpid():x}-0123abcd.tmp.csv"
    for name in (*alike, own):
        (tmp_path / name).touch()
    assert results.sweep(tmp_path) == [] and results.sweep(tmp_path / "none") == []
    for name in alike:
        os.utime(tmp_path / name, (0, time.time() - 25 * 3600))
    (tmp_path / ".link.0123abcd.tmp.png").symlink_to(tmp_path / own)
    (tmp_path / ".folder.0123abcd.tmp").mkdir()
    for name in (".folder.0123abcd.tmp", ".link.0123abcd.tmp.png"):
        os.utime(tmp_path / name, (0, 0), follow_symlinks=False)
    assert sorted(p.name for p in results.sweep(tmp_path)) == sorted(alike)
    assert names(tmp_path) == sorted([own, ".folder.0123abcd.tmp", ".link.0123abcd.tmp.png"])


def test_atomic_files_can_be_read_by_others(tmp_path):
    """safetensors writes 0600; a group that shares a folder must read the adapters in it."""
    (tmp_path / "plain").touch()
    with results.atomic(tmp_path / "a.safetensors") as tmp:
        save_file({"a": torch.zeros(1)}, tmp)
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("number, words", [(errno.ENOSPC, "no disk space"), (errno.EACCES, "cannot write")])
def test_disk_errors_name_path_and_free_bytes(tmp_path, number, words):
    path = tmp_path / "a.bin"
    with pytest.raises(OSError, match=words) as info, results.atomic(path):
        raise OSError(number, os.strerror(number))
    assert str(path) in str(info.value) and "bytes are free" in str(info.value) and info.value.errno == number
    assert not names(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device that is always full")
def test_a_really_full_device(tmp_path):
    with pytest.raises(OSError, match="no disk space"), results.atomic(tmp_path / "a.bin") as tmp:
        tmp.symlink_to("/dev/full")
        tmp.write_bytes(b"x")
    assert not names(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize(
    "setting", ["IFCSR_RESULTS", "IFCSR_DATA", "IFCSR_CACHE", "TORCH_HOME", "TMPDIR", None]
)
def test_the_advice_helps_at_that_place(tmp_path, monkeypatch, setting, number):
    """A setting is named only where it decides about the file."""
    names = ("IFCSR_RESULTS", "IFCSR_DATA", "IFCSR_CACHE", "TORCH_HOME")
    for name in names:
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "TMPDIR"))
    path = tmp_path / (setting or "IFCSR_RESULTS_of_mine") / "ifcsr-x" / "a.bin"
    with pytest.raises(OSError) as info, results.atomic(path):
        raise OSError(number, os.strerror(number))
    text = str(info.value)
    named = [name for name in (*names, "TMPDIR") if f"set {name}" in text]
    assert named == ([setting] if setting else []), text
    assert ("choose another place" in text) == (setting is None)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_file_system_that_lacks_a_call(tmp_path, monkeypatch, call, number):
    """Network shares without fsync, without modes, or without renaming over a file: written all the same."""

    def lacks(*args, **kwargs):
        raise OSError(errno.EPERM if call == "chmod" else number, "it has none")

    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr(f"os.{call}", lacks)
    with results.atomic(path) as tmp:
        tmp.write_bytes(b"new")
    assert path.read_bytes() == b"new" and names(tmp_path) == ["a.bin"]


def test_a_folder_of_that_name(tmp_path):
    (tmp_path / "a.png").mkdir()
    for f in (results.check_writable, lambda path: results.write_json({}, path)):
        with pytest.raises(OSError, match=r"cannot write \S+a\.png: it is a folder") as info:
            f(tmp_path / "a.png")
        assert ".tmp" not in str(info.value)
    assert names(tmp_path) == ["a.png"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc, a folder that takes no files")
def test_a_folder_that_takes_no_files():
    """The line names the file, never the temporary one."""
    for f in (results.check_writable, lambda path: results.write_json({}, path)):
        with pytest.raises(OSError, match=r"cannot write /proc/a\.json \(.*choose another place") as info:
            f("/proc/a.json")
        assert ".tmp" not in str(info.value)


def test_writing_is_tried_before_the_work(tmp_path, monkeypatch):
    """The same words as at the end of the work, nothing left behind, and an older file untouched."""
    path = tmp_path / "new" / "a.csv"
    results.check_writable(path)
    assert names(path.parent) == []
    path.write_text("old")
    results.check_writable(path)
    for number in (errno.EACCES, errno.EROFS, errno.ENOSPC):

        def refuse(self, data, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
        with pytest.raises(OSError, match=r"a\.csv.*choose another place"):
            results.check_writable(path)
    assert path.read_text() == "old" and names(path.parent) == ["a.csv"]


def test_a_user_without_a_home_folder(tmp_path, monkeypatch):
    """Containers run under numbers that no passwd knows: advice and caches must not need a home."""
    from ifcsr_lib import backbone

    for name in ("HOME", "XDG_CACHE_HOME", "IFCSR_CACHE", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.setattr("pathlib.Path.home", lambda: 1 / 0)
    with pytest.raises(OSError, match="choose another place"), results.atomic(tmp_path / "a"):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    assert backbone.cache().is_absolute()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_failed_fsync_is_no_lacking_one(tmp_path, monkeypatch, number):
    def failed(descriptor):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.fsync", failed)
    with pytest.raises(OSError), results.atomic(path) as tmp:
        tmp.write_bytes(b"new")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("name", ["x" * 250 + ".png", "é" * 120 + ".png"])
def test_names_up_to_the_longest(tmp_path, name):
    with results.atomic(tmp_path / name) as tmp:
        tmp.write_bytes(b"x")
    assert names(tmp_path) == [name]


def test_json_that_is_none(tmp_path):
    path = tmp_path / "a.json"
    for data, words in (
        (POINTER + b"\n", "git lfs pull"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 10**5, "not valid JSON"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=words) as info:
            results.read_json(path)
        assert str(path) in str(info.value)


@pytest.mark.parametrize("record", ["[]", "3", '"x"', "null", '{"config": []}'])
def test_a_sidecar_that_is_no_record(cfg, table, record):
    path = results.write_table(table, "gamma", cfg)
    results.sidecar(path).write_text(record)
    with pytest.raises(ValueError, match=r"gamma\.json is no provenance record"):
        results.require(path, cfg, "04")
    results.write_table(table, "gamma", cfg)  # made again
    assert results.require(path, cfg, "04") == path


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(OSError, match="writable folder"), results.atomic(tmp_path / "results" / "a.bin"):
        pass


def test_other_errors_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), results.atomic(tmp_path / "a"):
        (tmp_path / "elsewhere").read_bytes()


def test_sha256_of_file_and_folder(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert results.sha256(tmp_path / "a") == known
    before = results.sha256(tmp_path)
    (tmp_path / "b").write_bytes(b"")
    assert results.sha256(tmp_path) != before
    with pytest.raises(FileNotFoundError, match="nothing to hash"):
        results.sha256(tmp_path / "missing")


def test_table_bytes_are_stable_and_untouched(cfg, table):
    path = results.write_table(table, "gamma", cfg, inputs=[ROOT / "pyproject.toml"], seconds=1.234)
    assert path == cfg.results / "tables" / "gamma.csv"
    assert path.read_bytes() == b"gamma,psnr,niqe\n0,28.1235,1\n0.1,,\n1,22,not run: needs x.pth\n"
    times = {p: p.stat().st_mtime_ns for p in path.parent.iterdir()}
    assert len(times) == 2
    results.write_table(table, "gamma", cfg, seconds=99)
    assert {p: p.stat().st_mtime_ns for p in path.parent.iterdir()} == times
    back = pd.read_csv(results.require(path, cfg, "04"))
    assert list(back.columns) == list(table.columns) and np.isnan(back.psnr[1])
    assert results.write_table(table.set_index("gamma"), "gamma", cfg).read_bytes().startswith(b"gamma,psnr")


def test_same_bytes_of_another_config_get_a_new_sidecar(cfg, table):
    """Otherwise `require` would ask for ever for a notebook that has just run."""
    results.write_table(table, "gamma", cfg)
    other = resolve("smoke", overrides={"k": 3.0})
    path = results.write_table(table, "gamma", other)
    assert len(pd.read_csv(results.require(path, other, "04"))) == 3


def test_figure_bytes_are_stable(cfg):
    from matplotlib.figure import Figure

    def draw():
        fig = Figure(figsize=(2, 1))
        fig.subplots().plot([0, 1], [1, 0])
        return fig

    path = results.write_figure(draw(), "spectrum", cfg)
    first, stamp = path.read_bytes(), path.stat().st_mtime_ns
    results.write_figure(draw(), "spectrum", cfg)
    assert path.read_bytes() == first and path.stat().st_mtime_ns == stamp
    assert not {"Software", "Creation Time"} & set(Image.open(path).info)
    strip = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    assert np.array_equal(Image.open(results.write_figure(strip, "strip", cfg)), strip)


def test_provenance_says_all_and_no_machine_path(cfg, tmp_path, monkeypatch):
    monkeypatch.setenv("IFCSR_NOTEBOOK", "notebooks/04_gamma_sweep.ipynb")
    for folder in ("LR", "HR", "run"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(folder.encode())
    inputs = [ROOT / "pyproject.toml", tmp_path / "LR" / "x.png", tmp_path / "HR" / "x.png", tmp_path / "run"]
    record = results.provenance(cfg.replace(backbone=str(tmp_path / "sd21")), inputs, 2.0)
    assert list(record["inputs"]) == ["pyproject.toml", "x.png", "HR/x.png", "run"]
    assert record["written_by"] == "04_gamma_sweep.ipynb" and record["config"]["backbone"] == "sd21"
    assert record["packages"]["torch"] and record["seconds"] == 2.0 and record["profile"] == "smoke"
    text = json.dumps(record)
    assert (
        str(tmp_path) not in text and str(ROOT) not in text and os.path.expanduser("~") + os.sep not in text
    )


def test_results_folder_elsewhere_is_still_named(cfg):
    path = results.write_json({}, cfg.results / "endpoints" / "a.json")
    assert list(results.provenance(cfg, [path])["inputs"]) == ["results/smoke/endpoints/a.json"]


def test_works_without_git(cfg, monkeypatch):
    monkeypatch.setenv("PATH", "")
    record = results.provenance(cfg)
    assert record["commit"] is None and record["dirty"] is None


def test_missing_and_foreign_artefacts_name_the_notebook(cfg, table):
    with pytest.raises(
        FileNotFoundError, match=r"gamma.csv is missing: run notebooks/04.* first, with profile='smoke'"
    ):
        results.require(cfg.results / "tables" / "gamma.csv", cfg, "04")
    path = results.write_table(table, "gamma", cfg)
    with pytest.raises(
        ValueError, match=r"gamma.csv was made with seed=0, k=7.0, this run has seed=5, k=3.0: run note"
    ):
        results.require(path, resolve("smoke", seed=5, overrides={"k": 3.0}), "04")
    path.write_text("gamma\n1\n")
    with pytest.raises(ValueError, match="not the file that gamma.json describes"):
        results.require(path, cfg, "04")
    path.with_suffix(".json").write_text("{")
    with pytest.raises(ValueError, match="gamma.json is not valid JSON"):
        results.require(path, cfg, "04")
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match="gamma.json is missing"):
        results.require(path, cfg, "04")


def test_sidecar_of_a_folder(cfg):
    folder = cfg.results / "pairs"
    results.write_json([1], folder / "manifest.json")
    assert results.write_sidecar(folder, cfg) == folder / "provenance.json"
    assert results.require(folder, cfg, "01") == folder
    with pytest.raises(ValueError, match="allow_nan|JSON compliant"):
        results.write_json(float("nan"), folder / "manifest.json")
    assert results.read_json(folder / "manifest.json") == [1]


@pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")
def test_a_link_stays_one_and_a_device_is_never_replaced(tmp_path):
    """The file behind a link, on a larger disk say, is replaced; pipes and devices are refused at once."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "a.json").symlink_to("disk/b.json")  # not there yet
    for value in (1, 2):
        results.check_writable(tmp_path / "a.json")
        results.write_json(value, tmp_path / "a.json")
        assert (tmp_path / "a.json").is_symlink() and results.read_json(tmp_path / "disk" / "b.json") == value
    assert names(tmp_path / "disk") == ["b.json"]
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "null.json").symlink_to(os.devnull)
    for name, what in (("pipe.json", "a pipe"), ("null.json", "a device")):
        for f in (results.check_writable, lambda path: results.write_json({}, path)):
            with pytest.raises(OSError, match=f"it is {what}; choose another name"):
                f(tmp_path / name)
    assert os.path.exists(os.devnull) and names(tmp_path) == ["a.json", "disk", "null.json", "pipe.json"]


@pytest.mark.parametrize("hours", [-24 * 365, 24 * 365])
def test_a_clock_that_jumps_removes_no_file(tmp_path, monkeypatch, hours):
    """Neither of a running process here, however old it looks, nor of another machine by this one's clock."""
    real = time.time
    own = f".a.{results._machine()}-{os.getpid():x}-0123abcd.tmp.csv"
    other = ".a.00000000-1-0123abcd.tmp.csv"
    for name in (own, other):
        (tmp_path / name).touch()
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * hours)
    os.utime(tmp_path / own, (0, 0))
    assert results.sweep(tmp_path) == []
    os.utime(tmp_path / other, (0, real() - 25 * 3600))
    assert [p.name for p in results.sweep(tmp_path)] == [other] and names(tmp_path) == [own]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EBUSY])
def test_a_file_that_is_mounted_of_its_own(tmp_path, monkeypatch, number):
    """`docker run -v a.csv:/work/a.csv`: no rename can replace it, its bytes can."""

    def refuse(*args):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "a.csv"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.replace", refuse)
    with results.atomic(path) as tmp:
        tmp.write_bytes(b"new")
    assert path.read_bytes() == b"new" and names(tmp_path) == ["a.csv"]
    with pytest.raises(OSError), results.atomic(tmp_path / "new.csv") as tmp:
        tmp.write_bytes(b"new")
    assert names(tmp_path) == ["a.csv"]


def test_two_notebooks_that_write_one_table(cfg, table, monkeypatch):
    """The other one's table lands between ours and our record: ours has other bytes, which `require` sees."""
    own = results.write_sidecar

    def meanwhile(path, *args, **kwargs):
        path.write_text("gamma\n9\n")
        return own(path, *args, **kwargs)

    monkeypatch.setattr(results, "write_sidecar", meanwhile)
    path = results.write_table(table, "gamma", cfg)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"gamma\.csv is not the file that gamma\.json describes: run note"):
        results.require(path, cfg, "04")


def test_looking_at_git_takes_no_lock(cfg, tmp_path, monkeypatch):
    """Each record asks git for changes. Plain `git status` writes the index, and a commit of the user's that
    runs at that moment fails.
    """

    def git(*args):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *args], cwd=tmp_path, check=True)

    for args in (["init", "-q"], ["add", "f"], ["commit", "-qm", "x"]):
        (tmp_path / "f").write_text("x")
        git(*args)
    index = tmp_path / ".git" / "index"
    os.utime(tmp_path / "f", (1, 1))  # the index now holds another time than the file has
    before = index.read_bytes()
    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert results.provenance(cfg)["dirty"] is False and index.read_bytes() == before
    git("status", "--porcelain")
    assert index.read_bytes() != before, "a plain status would have written it"


def test_json_of_numpys_numbers(tmp_path):
    value = {"a": np.float32(0.5), "b": [np.int64(3), np.bool_(True)], "c": np.arange(3), "d": tmp_path}
    path = results.write_json(value, tmp_path / "a.json")
    assert results.read_json(path) == {"a": 0.5, "b": [3, True], "c": [0, 1, 2], "d": str(tmp_path)}
    before = path.read_bytes()
    for bad, error, words in (
        ({"a": {1, 2}}, TypeError, "a set is no JSON; pass numbers"),
        ({np.int64(1): 2}, TypeError, "keys must be"),
        ({"a": np.float32("nan")}, ValueError, "NaN and infinity"),
    ):
        with pytest.raises(error, match=rf"a\.json was not written: .*{words}"):
            results.write_json(bad, path)
    assert path.read_bytes() == before and names(tmp_path) == ["a.json"]
