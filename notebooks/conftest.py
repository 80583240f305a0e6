"""Under pytest --nbval the notebooks run at smoke scale and write to a temporary folder, never to tracked results."""

import os
import tempfile

import pytest

from ifcsr_lib.config import ROOT

_results = tempfile.TemporaryDirectory(
    prefix="ifcsr-nbval-"
)  # one for all: each notebook reads what earlier ones wrote


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    """nbval starts the kernel of a notebook in here, and the kernel inherits the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IFCSR_PROFILE", "smoke")
        patch.setenv("IFCSR_RESULTS", _results.name)
        patch.setenv("IFCSR_NOTEBOOK", item.path.name)
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        patch.setenv("PYTHONHASHSEED", "0")
        return (yield)
