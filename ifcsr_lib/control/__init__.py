"""The slider's arithmetic: blend, the pair of endpoints, and what may be moved along it (bands, maps,
ghosting).
"""

import importlib

from .endpoints import Endpoints, ManyEndpoints, adain, blend, check_gamma, check_same_scene

# loaded on first use: it needs diffusers and both adapters, which moving the slider does not
_LAZY = {"strategies": "..compare.strategies"}
__all__ = [
    "Endpoints",
    "ManyEndpoints",
    "adain",
    "blend",
    "check_gamma",
    "check_same_scene",
    "strategies",
]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"ifcsr_lib.control has no {name!r}; it has: {', '.join(__all__)}")
