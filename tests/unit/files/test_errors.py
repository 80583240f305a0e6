"""errors.py: whatever is raised becomes one line without numbers of the system, allocators or tracebacks."""

import errno
import os
import stat

import numpy as np
import pytest
import torch

from ifcsr_lib import errors
from ifcsr_lib.config import resolve
from ifcsr_lib.errors import LENGTH, explain, one_line, out_of_memory, own


@pytest.fixture(autouse=True)
def _logs(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(errors, "_logs", [])


def caught(f, *args, **kwargs) -> Exception:
    try:
        f(*args, **kwargs)
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError("nothing was raised")


def throw(error):
    raise error


@pytest.mark.parametrize("number", sorted(errno.errorcode), ids=errno.errorcode.get)
def test_every_number_of_the_system_is_a_sentence(number, tmp_path):
    """With one name, two, or none; what to do comes last."""
    for names in ((), ("a b.png",), ("a b.png", None, "c.png")):
        text = explain(caught(throw, OSError(number, os.strerror(number), *names)))
        assert "Errno" not in text and f"{number}" not in text and "\n" not in text, text
        assert "; " in text and len(text) <= LENGTH and "unexpected" not in text, text
        assert number == errno.ENOMEM or all(name in text for name in names if name), text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: open(folder / "absent"),  # noqa: SIM115
        lambda folder: open(folder),  # noqa: SIM115
        lambda folder: (folder / "file" / "x").mkdir(),
        lambda folder: os.rename(folder / "absent", folder / "b"),
        lambda folder: open(folder / ("x" * 300), "w"),  # noqa: SIM115
    ],
)
def test_real_refusals(make, tmp_path):
    (tmp_path / "file").touch()
    text = explain(caught(make, tmp_path))
    assert str(tmp_path) in text and "Errno" not in text and "; " in text


MEMORY = {
    "numpy": lambda: np.empty(2**60, np.uint8),
    "torch cpu": lambda: torch.empty(2**60, dtype=torch.uint8),
    "python": lambda: bytearray(2**60),
    "cuda": lambda: throw(
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 ...")
    ),
    "mps": lambda: throw(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)")),
    "cudnn": lambda: throw(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")),
    "cublas": lambda: throw(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
    "system": lambda: throw(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))),
}


@pytest.mark.parametrize("kind", MEMORY)
def test_memory_that_ran_out_says_what_helps(kind, tmp_path):
    error = caught(MEMORY[kind])
    assert out_of_memory(error)
    assert explain(error, "--tile 512 takes less") == "out of memory; --tile 512 takes less"
    assert not list(tmp_path.iterdir())


def test_other_errors_are_not_memory():
    for error in (RuntimeError("shape"), ValueError("out of memory"), OSError(2, "x"), KeyError("memory")):
        assert not out_of_memory(error)


def test_errors_of_the_library_are_its_own_words(tmp_path):
    """Raised by a `raise` in the library. What Python or a package raises inside of it is not."""
    error = caught(resolve, "poket")
    assert own(error) and explain(error).startswith("profile 'poket' is unknown")
    error = caught(resolve, ["smoke"])  # a list in a dict: nobody foresaw it, and it comes from inside too
    assert not own(error) and "unexpected" in explain(error)
    assert not own(caught(throw, ValueError("x"))) and not own(ValueError("never raised"))
    assert not own(caught(resolve, wrong=1))


@pytest.mark.parametrize(
    "error",
    [ValueError("two\nlines"), KeyError("k"), AttributeError("a"), AssertionError(), ZeroDivisionError()],
)
def test_the_unexpected_is_logged_whole(error, tmp_path):
    text = explain(caught(throw, error))
    (path,) = tmp_path.iterdir()
    assert str(path) in text and type(error).__name__ in text and "\n" not in text and "report" in text
    written = path.read_text()
    assert "Traceback (most recent call last)" in written and "in throw" in written
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    explain(caught(throw, RuntimeError("second")))
    assert list(tmp_path.iterdir()) == [path] and path.read_text().startswith(written)
    assert "second" in path.read_text(), "one file a process"


def test_where_no_log_can_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    text = explain(caught(throw, KeyError("k")))
    assert "KeyError: k" in text and "IFCSR_DEBUG=1" in text


def test_a_missing_package_is_named(tmp_path):
    error = ModuleNotFoundError("No module named 'pyiqa.x'", name="pyiqa.x")
    assert "the package 'pyiqa' is missing" in explain(caught(throw, error))
    assert not list(tmp_path.iterdir())


def test_a_long_message_keeps_both_ends():
    text = one_line(ValueError("first " + "x" * 5000 + " last\n"))
    assert len(text) <= LENGTH and text.startswith("first") and text.endswith("last") and " ... " in text
    assert one_line(ValueError()) == "ValueError"
