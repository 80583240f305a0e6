"""A wheel carries data/ as ifcsr_lib/shipped/data, so that `load("pocket")` works without a checkout.

All else is in pyproject.toml. Package data must lie inside a package, and data/ is where people look for it.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


class WithData(build_py):
    """build_py that also copies data/; an editable install reads it where it is."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "ifcsr_lib", "shipped", "data")
        shutil.rmtree(target.parent, ignore_errors=True)
        for name in ("pocket", "paper"):  # not all of data/: it may hold more than the repository's files
            if not (HERE / "data" / name).is_dir():
                raise FileNotFoundError(f"data/{name} is missing: build from a whole checkout")
            shutil.copytree(HERE / "data" / name, target / name, ignore=shutil.ignore_patterns(".*"))


setup(cmdclass={"build_py": WithData})
