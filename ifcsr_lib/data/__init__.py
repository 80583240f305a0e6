"""Photographs to patches, the paper's data sets, and streams of images from disk or network.

Names load on first use, so that `python -m ifcsr_lib data --help` needs no torch.
"""

import importlib

_NAMES = (
    "Crops", "Degraded", "HELDOUT_INDEX", "MANIFEST", "POCKET", "PhotoFile", "Repeated", "cut", "load_images", "load_photo",
    "looks_photographic", "low_quality", "normal", "pairs", "photos", "training_crops", "uniform", "user_data", "write_pairs",
)  # fmt: skip
__all__ = [*_NAMES]  # noqa: PLE0604


def __getattr__(name: str):
    if name in _NAMES:
        return getattr(importlib.import_module(".crops", __name__), name)
    raise AttributeError(f"ifcsr_lib.data has no {name!r}; it has: {', '.join(_NAMES)}")


def __dir__() -> list[str]:
    return sorted(__all__)
