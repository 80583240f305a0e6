"""The slider: gamma in a notebook, and the same on a page without a kernel. Every frame is E1.

`Explorer` is the widget and `Explorer.save_html` writes the page; `compare` puts several models under one
slider. Both run the front end in js/, which gets the endpoint images once and blends them in the browser: a
move of gamma asks neither the kernel nor a network.

Names load on first use, so that `page` and `plain` need neither torch nor anywidget.
"""

import importlib

_WHERE = {"PRESETS": "page", "Explorer": "widget", "compare": "widget"}
__all__ = ["PRESETS", "Explorer", "compare"]


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"ifcsr_lib.explorer has no {name!r}; it has: {', '.join(__all__)}")
