"""IFCSR: 4x real-world super-resolution with a fidelity-realism slider that runs no network per move.

Names load on first use, so that `python -m ifcsr_lib --help` needs no torch.
"""

import importlib

__version__ = "0.1.0"

_WHERE = {
    "load": "models", "IFCSR": "models", "Endpoints": "control", "blend": "control", "degrade": "degradation",
    "IFCSRPipeline": "pipeline",
    "resolve": "config", "Config": "config", "PROFILES": "config", "ROOT": "config",
}  # fmt: skip
_MODULES = {
    **{name: name for name in ("config", "control", "data", "degradation", "evaluate", "explorer", "loss",
                               "models", "pipeline", "reproduce", "trainer")},
    "ghosting": "control.ghosting", "maps": "control.maps",
    "backbone": "nets.backbone", "pocket": "nets.pocket", "sd21": "nets.sd21",
    "datasets": "data.sets", "remote": "data.remote", "streams": "data.streams",
    "images": "files.images", "portable": "files.portable", "results": "files.results",
    "benchmark": "evaluate.benchmark", "dry_run": "cli.dry_run",
    "costs": "compare.costs", "peers": "compare.peers", "strategies": "compare.strategies",
}  # fmt: skip
__all__ = [*_WHERE, *_MODULES]  # noqa: PLE0604


def __getattr__(name: str):
    try:
        if name in _WHERE:
            return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
        if name in _MODULES:
            return importlib.import_module(f".{_MODULES[name]}", __name__)
    except ModuleNotFoundError as error:
        how = (
            'the light install has upscale and explore alone; the rest: pip install ".[full]" in the checkout'
        )
        raise ModuleNotFoundError(
            f"ifcsr_lib.{name} needs the package {error.name!r}; {how}", name=error.name
        ) from error
    raise AttributeError(f"ifcsr_lib has no {name!r}; it has: {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    return sorted(__all__)
