"""reproduce.py on three tiny notebooks of its own: real kernels, real papermill."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from ifcsr_lib import reproduce as module
from ifcsr_lib.cli import main
from ifcsr_lib.config import ROOT
from ifcsr_lib.files.checks import POINTER
from ifcsr_lib.report.notebooks import MINUTES, Forecast
from ifcsr_lib.reproduce import notebooks, reproduce

PARAMETERS = "profile = None\nseed = 0\noverrides = None"
GOOD = """import json, os, sys
from pathlib import Path
out = Path(os.environ["IFCSR_RESULTS"], "seen.txt")
out.parent.mkdir(parents=True, exist_ok=True)
seen = [profile, seed, overrides, sys.executable, os.environ["IFCSR_NOTEBOOK"]]
print(json.dumps(seen), file=out.open("a"))"""


def save(root: Path, name: str, *cells: str, parameters: str = PARAMETERS) -> None:
    nb = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "x", "language": "python"}}
    )
    nb.cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    nb.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    (root / "notebooks").mkdir(exist_ok=True)
    nbformat.write(nb, root / "notebooks" / name)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(module, "side_by_side", lambda profile: 1)
    return tmp_path


def test_order_parameters_and_progress(root, monkeypatch, capsys):
    for name in ("07_b.ipynb", "00_a.ipynb", "90_no.ipynb"):
        save(root, name, GOOD)
    before = {p: p.read_bytes() for p in (root / "notebooks").iterdir()}
    monkeypatch.chdir(root)
    monkeypatch.setenv("IFCSR_RESULTS", "mine")  # relative: must mean the same file here and in the kernels
    environment = dict(os.environ)
    done = reproduce("smoke", 3, {"k": 3.0})
    assert [p.name for p in done] == ["00_a.ipynb", "07_b.ipynb"] and all(p.is_file() for p in done)
    seen = [json.loads(line) for line in (root / "mine" / "seen.txt").read_text().splitlines()]
    assert seen == [["smoke", 3, {"k": 3.0}, sys.executable, name] for name in ("00_a.ipynb", "07_b.ipynb")]
    text = capsys.readouterr().out
    assert re.search(r"\n\[1/2\] 00_a: .* so far \.\.\. \d+ s\n\[2/2\] 07_b", text) and "done in" in text
    assert "how long it takes is not known" in text and "to go" not in text
    report = root / "mine" / "smoke" / "report.html"
    assert text.splitlines()[-1] == str(report) and "07_b" in report.read_text(encoding="utf-8")
    assert {p: p.read_bytes() for p in (root / "notebooks").iterdir()} == before, "run in place"
    assert dict(os.environ) == environment
    assert sorted(p.name for p in (root / "mine/smoke/executed").iterdir()) == ["00_a.ipynb", "07_b.ipynb"]


REQUIRES = """import os, time
from pathlib import Path
notes = Path(os.environ["IFCSR_RESULTS"])
# results.require(notes / "x", cfg, "{}")
def note(word):
    path = notes / f"{{os.environ['IFCSR_NOTEBOOK'][:2]}}.{{word}}"
    path.write_text(os.environ.get("OMP_NUM_THREADS", ""))
def there(*names, seconds=60):
    end = time.monotonic() + seconds
    while not all((notes / name).exists() for name in names):
        assert time.monotonic() < end, names
        time.sleep(0.05)
note("begun")
"""


def test_two_at_a_time_and_none_before_what_it_requires(root, capsys, monkeypatch):
    """01 ends only when 02 has begun, so they overlap; 03 begins when 01 has ended, whatever its number."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    save(root, "00_a.ipynb", REQUIRES.format("03"), "assert (notes / '03.end').exists()")
    save(root, "01_b.ipynb", REQUIRES.format("-"), "there('02.begun')", "note('end')")
    save(root, "02_c.ipynb", REQUIRES.format("-"), "there('01.begun')", "note('end')")
    save(root, "03_d.ipynb", REQUIRES.format("01"), "assert (notes / '01.end').exists()", "note('end')")
    notes = Path(os.environ["IFCSR_RESULTS"])
    before, environment = Path.cwd(), dict(os.environ)
    done = reproduce("smoke", jobs=2)
    assert [p.name for p in done] == ["00_a.ipynb", "01_b.ipynb", "02_c.ipynb", "03_d.ipynb"]
    assert all(p.is_file() for p in done) and (Path.cwd(), dict(os.environ)) == (before, environment)
    assert {(notes / f"{i:02}.begun").read_text() for i in range(4)} == {"3"}, "a share of six cores each"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("4 notebooks, 2 at a time, ") and lines[1].startswith("[1/4] 01_b: ")
    assert sum(bool(re.fullmatch(r" +\d\d_\w \.\.\. \d+ s", line)) for line in lines) == 4
    names = [json.loads(p.read_text())["metadata"]["kernelspec"]["name"] for p in done]
    assert names == ["python3"] * 4, "the kernels of a run are of no use afterwards"


def test_what_runs_beside_a_failure_is_stopped(root, capsys):
    save(root, "00_a.ipynb", REQUIRES.format("-"), "there('01.begun')", "1 / 0")
    save(root, "01_b.ipynb", REQUIRES.format("-"), "time.sleep(100)")
    save(root, "02_c.ipynb", "1")
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="00_a.ipynb failed in code cell 5.*ZeroDivisionError"):
        reproduce("smoke", jobs=2)
    assert time.monotonic() - start < 60
    text, folder = capsys.readouterr().out, Path(os.environ["IFCSR_RESULTS"]) / "smoke" / "executed"
    assert "00_a ... failed after" in text and "01_b ... stopped after" in text and "02_c" not in text
    assert {p.name for p in folder.iterdir()} - {"00_a.log"} == {"00_a.failed.ipynb"}


def test_jobs_that_cannot_be(root, capsys):
    save(root, "00_a.ipynb", "1")
    assert main(["reproduce", "--profile", "smoke", "--jobs", "0"]) == 2
    assert "jobs=0; allowed: 1 or more" in capsys.readouterr().err
    save(root, "00_a.ipynb", REQUIRES.format("01"))
    save(root, "01_b.ipynb", REQUIRES.format("00"))
    with pytest.raises(ValueError, match="00_a.ipynb, 01_b.ipynb require each other's results"):
        reproduce("smoke")


def test_the_notebooks_say_what_they_require():
    """What reproduce finds in the text of the real ones."""
    found = {path.name[:2]: {p.name[:2] for p in module.needs(path, notebooks())} for path in notebooks()}
    assert found["00"] == found["01"] == set() and found["02"] == {"01"}
    assert {"01", "02"} <= found["03"] and {"01", "03"} <= found["04"] and "01" in found["07"]
    assert module.side_by_side("paper") == 1


def test_ctrl_c_ends_every_kernel(root):
    """A process of its own, told to stop while two notebooks run."""
    for name in ("00_a.ipynb", "01_b.ipynb"):
        save(root, name, REQUIRES.format("-"), "time.sleep(100)")
    # a shell that runs this in the background has taken Ctrl-C away from its children
    code = f"""import signal
from pathlib import Path
from ifcsr_lib import reproduce
from ifcsr_lib.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
reproduce.ROOT = Path({str(root)!r})
raise SystemExit(main(["reproduce", "--profile", "smoke", "--jobs", "2"]))"""
    notes = Path(os.environ["IFCSR_RESULTS"])
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    end = time.monotonic() + 60
    while not all((notes / f"0{i}.begun").exists() for i in (0, 1)):
        assert process.poll() is None and time.monotonic() < end, process.communicate(timeout=1)[0]
        time.sleep(0.1)
    kernels = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "Traceback" not in text, text
    assert len(kernels) == 2 and not psutil.wait_procs(kernels, timeout=10)[1]


NOISE = """import atexit, logging, os, sys, warnings
os.write(1, b"noise of C on 1"), os.write(2, b"noise of C on 2")
sys.__stderr__.write("noise of Python")
logging.getLogger("noise").error("noise of a logger")
warnings.warn("noise of a warning")
atexit.register(os.write, 2, b"noise at the end\\n")"""


def test_nothing_but_progress_lines_when_all_is_well(root, capfd):
    """Of the kernels and of this process; a newcomer takes any other line for a failure."""
    save(root, "00_a.ipynb", NOISE)
    reproduce("smoke")
    said = capfd.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    forms = (
        "1 notebooks, profile smoke.*",
        r"\[1/1\] 00_a: .* so far \.\.\. \d+ s",
        "done in .*",
        r"/.*report\.html",
    )
    assert len(lines) == 4 and all(map(re.fullmatch, forms, lines)), lines
    assert [p.name for p in (Path(os.environ["IFCSR_RESULTS"]) / "smoke/executed").iterdir()] == [
        "00_a.ipynb"
    ]


def test_the_last_run_tells_how_long_this_one_takes(root, capsys):
    save(root, "00_a.ipynb", "1")
    save(root, "01_b.ipynb", "1")
    done = reproduce("smoke")
    for path, seconds in zip(done, (60, 600), strict=True):
        notebook = json.loads(path.read_text())
        notebook["metadata"]["papermill"]["duration"] = seconds
        path.write_text(json.dumps(notebook))
    capsys.readouterr()
    save(root, "01_b.ipynb", "1 / 0")
    with pytest.raises(RuntimeError):
        reproduce("smoke")
    first, one, two = capsys.readouterr().out.splitlines()
    assert first.endswith("; about 11 min, going by the last run here")
    assert re.fullmatch(r"\[1/2\] 00_a: under 1 min so far, about 11 min to go \.\.\. \d+ s", one)
    # the first took a few seconds in place of a minute: so will the rest, in part
    told = re.fullmatch(
        r"\[2/2\] 01_b: under 1 min so far, about (\d+) min to go \.\.\. failed after \d+ s", two
    )
    assert 6 <= int(told[1]) <= 9


@pytest.mark.parametrize(
    "profile, stems, source",
    [
        ("pocket", ["02_stage1", "03_stage2"], "README's minutes, for 2 CPU cores"),
        ("pocket", ["02_stage1", "89_new"], None),
        ("paper", ["02_stage1"], None),
    ],
)
def test_without_a_run_the_forecast_is_of_readmes_minutes(tmp_path, profile, stems, source):
    forecast = Forecast(stems, tmp_path, profile)
    assert forecast.source == source
    whole = 60 * (MINUTES["02"] + MINUTES["03"])
    assert forecast.left() == (whole if source else None)
    if source:  # twice as slow as README's machine
        assert 2 * MINUTES["03"] > forecast.left(stems[:1], 120 * MINUTES["02"]) / 60 > 4 / 3 * MINUTES["03"]
        assert forecast.left(stems, 600) == 0
        assert Forecast(stems, tmp_path, profile, jobs=2).left() == whole / 2


def test_the_minutes_are_those_of_the_readme():
    said = {}
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        if numbers := re.findall(r"\[(\d\d) [^]]*\]\(notebooks/", line):
            cell = line.strip("| ").split("|")[-1].strip()
            said |= dict(zip(numbers, ["0.5"] if "under" in cell else cell.split(", "), strict=False))
    assert MINUTES == {k: float(v) for k, v in said.items() if k < "90"}


def test_the_noise_of_a_failure_is_kept_and_named(root, capfd):
    folder = Path(os.environ["IFCSR_RESULTS"]) / "smoke" / "executed"
    save(root, "00_a.ipynb", NOISE, "1 / 0")
    for _ in range(2):  # a second attempt replaces the first one's
        with pytest.raises(RuntimeError, match="ZeroDivisionError") as info:
            reproduce("smoke")
        assert "\n" not in str(info.value) and str(folder / "00_a.log") in str(info.value)
        assert "noise at the end" in (folder / "00_a.log").read_text()
    said = capfd.readouterr()
    assert said.err == "" and "noise" not in said.out
    save(root, "00_a.ipynb", "1")
    reproduce("smoke")
    assert [p.name for p in folder.iterdir()] == ["00_a.ipynb"]


@pytest.mark.parametrize(
    "cell, words",
    [
        ("1 / 0", r"ZeroDivisionError: division by zero; executed so far: \S+00_a.failed.ipynb"),
        ("import numpy\nnumpy.empty(2**60, 'u1')", "out of memory; close other programs"),
        ("raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')", "out of memory; close"),
        ("import os\nos._exit(9)", "its kernel died"),
        ("import sys\nsys.exit(3)", "SystemExit"),
        ("raise KeyError", "KeyError"),
        ("raise ValueError('x' * 9999)", "executed so far"),
    ],
)
def test_a_failing_notebook_is_one_line_of_the_command(root, cell, words, capfd):
    save(root, "00_a.ipynb", cell)
    assert main(["reproduce", "--profile", "smoke"]) == 2
    text = capfd.readouterr().err
    assert text.startswith("error: 00_a.ipynb failed in code cell 3") and text.count("\n") == 1, text
    assert re.search(words, text), text


@pytest.mark.parametrize(
    "text, words", [(POINTER.decode() + "\n", "git lfs pull"), ("{", "no whole notebook")]
)
def test_a_notebook_that_is_none(root, text, words, capsys):
    save(root, "00_a.ipynb", GOOD)
    (root / "notebooks" / "01_b.ipynb").write_text(text)
    assert main(["reproduce", "--profile", "smoke"]) == 2
    said = capsys.readouterr().err
    assert words in said and "01_b.ipynb" in said and said.count("\n") == 1


def test_two_runs_at_once(root, monkeypatch):
    """The second one starts, and takes its test file away, while the first one tests the folder."""
    save(root, "00_a.ipynb", GOOD)
    own = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, *a, **k: [own(self, True), own(self, *a, **k)][1])
    assert [p.name for p in reproduce("smoke")] == ["00_a.ipynb"]


def test_a_failure_names_notebook_cell_error_and_copy(root):
    save(root, "00_a.ipynb", "x = 1", "y = x\nraise ValueError('first line\\ngamma=2; allowed: 0 to 1')")
    save(root, "01_never.ipynb", GOOD)
    with pytest.raises(RuntimeError) as info:
        reproduce("smoke")
    folder = Path(os.environ["IFCSR_RESULTS"]) / "smoke" / "executed"
    text = str(info.value)
    # 1 and 2: parameters, injected ones
    assert "00_a.ipynb failed in code cell 4, which begins 'y = x'" in text, text
    assert (
        "ValueError" in text
        and "gamma=2; allowed: 0 to 1" in text
        and str(folder / "00_a.failed.ipynb") in text
    )
    assert {p.name for p in folder.iterdir()} - {"00_a.log"} == {"00_a.failed.ipynb"}


def test_a_hanging_cell_is_stopped(root, monkeypatch):
    monkeypatch.setitem(module.CELL_LIMIT, "smoke", 1)
    save(root, "00_a.ipynb", "import time\ntime.sleep(60)")
    with pytest.raises(RuntimeError, match=r"00_a.ipynb failed in code cell 3.*'import time': CellTimeout"):
        reproduce("smoke")


def test_a_dead_kernel_says_so(root):
    save(root, "00_a.ipynb", "import os\nos._exit(9)")
    with pytest.raises(
        RuntimeError, match=r"code cell 3, which begins 'import os' \(its kernel died: out of memory"
    ):
        reproduce("smoke")


@pytest.mark.parametrize("parameters", ["profile = None\nseed = 0", PARAMETERS + "\ngamma = 0.5"])
def test_other_parameters_are_fatal_before_anything_runs(root, parameters):
    save(root, "00_a.ipynb", GOOD)
    save(root, "01_b.ipynb", GOOD, parameters=parameters)
    with pytest.raises(ValueError, match="01_b.ipynb takes the parameters"):
        reproduce("smoke")
    assert not Path(os.environ["IFCSR_RESULTS"]).exists()


def test_bad_input_comes_first(root):
    with pytest.raises(FileNotFoundError, match="whole repository"):
        notebooks()
    save(root, "00_a.ipynb", GOOD)
    with pytest.raises(ValueError, match="profile 'pokcet' is unknown"):
        reproduce("pokcet")
    with pytest.raises(TypeError, match="came as str"):
        reproduce("smoke", overrides={"lr": "1e-4"})
    with pytest.raises(ValueError, match="only='05' fits no notebook; allowed: 00_a"):
        reproduce("smoke", only=["05"])


def test_no_room_is_said_before_the_first_notebook(root, monkeypatch):
    save(root, "00_a.ipynb", GOOD)
    monkeypatch.setattr(module, "NEEDED", shutil.disk_usage(root).total * 2)
    with pytest.raises(OSError, match="no disk space: .* bytes are free in .*executed"):
        reproduce("smoke")
    folder = Path(os.environ["IFCSR_RESULTS"])
    assert not (folder / "seen.txt").exists() and not list((folder / "smoke/executed").iterdir())
