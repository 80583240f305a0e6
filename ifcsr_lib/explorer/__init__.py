"""The slider: gamma in a notebook, and the same on a page without a kernel. Every frame is E1.

`Explorer` is the widget and `Explorer.save_html` writes the page; `compare` puts several models under one
slider. Both run the front end in js/, which gets the endpoint images once and blends them in the browser: a
move of gamma asks neither the kernel nor a network.
"""

from .widget import PRESETS, Explorer, compare

__all__ = ["PRESETS", "Explorer", "compare"]
