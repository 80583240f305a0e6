"""Photographs to patches, the paper's data sets, and streams of images from disk or network.

Names load on first use, so that `python -m ifcsr_lib data --help` needs no torch.
"""

import importlib

_WHERE = dict.fromkeys(
    (
        "Crops",
        "Degraded",
        "HELDOUT_INDEX",
        "MANIFEST",
        "POCKET",
        "PhotoFile",
        "load_images",
        "load_photo",
        "looks_photographic",
        "low_quality",
        "pairs",
        "photos",
        "read_pairs",
        "training_crops",
        "write_pairs",
    ),
    "crops",
) | dict.fromkeys(("cut", "normal", "uniform", "user_data"), "patches")
__all__ = [*_WHERE]  # noqa: PLE0604


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"ifcsr_lib.data has no {name!r}; it has: {', '.join(_WHERE)}")


def __dir__() -> list[str]:
    return sorted(__all__)
