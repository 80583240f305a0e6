"""The front end as one text, for the widget and for the exported page; and that page."""

from __future__ import annotations

import json
import re
from pathlib import Path

from .. import __version__

SOFTWARE = f"ifcsr_lib {__version__}"
PRESETS = (0.0, 0.25, 0.5, 0.75, 1.0)
JS = Path(__file__).parent / "js"
# A module imports only from those before it, so that joined in this order they are one module.
MODULES = (
    "util",
    "png",
    "pair",
    "sampling",
    "blend",
    "numbers",
    "painters",
    "state",
    "stage",
    "brush",
    "controls",
    "pointers",
    "gallery",
    "charts",
    "pictures",
    "files",
    "app",
    "hosts",
)
_DROPPED = re.compile(
    r"^import .*\n"  # one scope needs no imports
    r"|^export (?!default)"
    r"|^ */\*\*(?:.|\n)*?\*/\n"  # comments on lines of their own stay in js/, which keeps notebooks small
    r"|^ *//.*\n",
    re.MULTILINE,
)


def join() -> str:
    """js/*.js as one ES module, without imports, comment lines and exports but the default one."""
    texts = [(JS / f"{name}.js").read_text(encoding="utf-8") for name in MODULES]
    return "".join(_DROPPED.sub("", text).strip() + "\n" for text in texts)


ESM = join()
CSS = JS.with_name("explorer.css").read_text(encoding="utf-8")
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>IFCSR: fidelity to realism</title>
<style>
/*CSS*/
html {color-scheme: light dark}
body {max-width: 1400px; margin: 0 auto; padding: 12px}
body {background: var(--ifcsr-back); color: var(--ifcsr-ink)}
</style></head><body>
<main id="ifcsr"></main>
<noscript>This page blends its pictures with JavaScript; allow it for this file.</noscript>
<script type="application/json" id="ifcsr-data">/*DATA*/</script>
<script type="module">
/*JS*/
page(JSON.parse(document.getElementById("ifcsr-data").textContent), document.getElementById("ifcsr"));
</script></body></html>
"""


def html(spec: dict, state: dict, pictures: dict[str, str]) -> str:
    """The page. spec: what Explorer says of the images; state: its traits; pictures: {key: PNG in base64}."""
    data = json.dumps({"spec": spec, "state": state, "pictures": pictures}, allow_nan=False)
    page = _PAGE.replace("/*CSS*/", CSS).replace("/*JS*/", ESM)
    return page.replace("/*DATA*/", data.replace("<", "\\u003c"))  # no name can close the script
