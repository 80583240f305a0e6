"""What has to be settled before torch is loaded. No heavy import."""

from __future__ import annotations

import os


def patient_threads() -> None:
    """Let OpenMP's threads sleep while they wait, here and in every process started from here.

    Left alone they spin, and take the core from whatever else runs. libgomp, which torch's Linux wheels
    carry, reads OMP_WAIT_POLICY once, as it loads: call this before torch is imported. A value of the user's
    stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
