"""IFCSR_REQUIRE_BROWSER=1 (continuous integration sets it) turns a skip for want of a browser into
a failure.
"""

import os

import pytest
from chromium import missing


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    why = missing()
    if (
        report.skipped
        and why
        and why in str(report.longrepr)
        and os.environ.get("IFCSR_REQUIRE_BROWSER") == "1"
    ):
        report.outcome, report.longrepr = "failed", f"{why} (IFCSR_REQUIRE_BROWSER=1)"
    return report
