"""Where tests lie, and that a browser can be required."""

import os
import shutil
import subprocess
import sys

import pytest

from ifcsr_lib.config import ROOT

FOLDERS = {"unit", "flows", "browser", "repo"}


def test_every_test_lies_in_a_folder_that_has_a_marker():
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.relative_to(ROOT / "tests").parts[0]
        assert folder in FOLDERS, f"{path.name}: move it to one of tests/{', tests/'.join(sorted(FOLDERS))}"
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), "pytest needs test files of different names"


@pytest.mark.parametrize("required, words", [("0", "1 skipped"), ("1", "1 error")])
def test_a_missing_browser_fails_where_it_is_required(required, words, tmp_path):
    shutil.copy(ROOT / "tests" / "browser" / "conftest.py", tmp_path)
    (tmp_path / "test_one.py").write_text(
        "import pytest\nfrom chromium import missing\n\n"
        "@pytest.mark.skipif(bool(missing()), reason=missing())\ndef test_one():\n    pass\n"
    )
    env = {
        **os.environ,
        "PATH": str(tmp_path),
        "PYTHONPATH": str(ROOT / "tests"),
        "IFCSR_REQUIRE_BROWSER": required,
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert words in done.stdout and (required == "0" or "no chromium" in done.stdout), (
        done.stdout + done.stderr
    )
