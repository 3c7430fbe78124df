"""The server's web page, on which a user drops a scan, types prompts and sees masks."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
NIIVUE = _HERE.parent / "viewing" / "niivue" / "niivue.umd.js"
"""NiiVue (BSD-2), the copy that the viewer ships."""


@cache
def page() -> str:
    """The page, with its style and script."""
    parts = {name: (_HERE / f"page.{name}").read_text("utf-8") for name in ("html", "css", "js")}
    parts["html"] = parts["html"].replace("@@ZIP@@", (_HERE / "zip.js").read_text("utf-8"))
    return parts["html"].replace("@@STYLE@@", parts["css"]).replace("@@SCRIPT@@", parts["js"])
