"""A headless Chromium, driven through its own pipe: no driver, no package, no network."""

from __future__ import annotations

import base64
import io
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_chromium() -> str | None:
    """The program, if one is installed."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One page of a Chromium of its own; WebGL is SwiftShader's, so that no GPU is needed.

    Args:
        folder: For its profile.
        size: (width, height) of its window.
    """

    def __init__(self, folder: Path, size: tuple[int, int] = (1200, 800)) -> None:
        self.size = size
        self.problems: list[str] = []
        self._folder = folder
        self._number = 0
        self._rest = b""

    def __enter__(self) -> Page:
        to_child, self._write = os.pipe()
        self._read, from_child = os.pipe()
        program = find_chromium()
        assert program is not None
        arguments = [
            program, "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars",
            "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--remote-debugging-pipe",
            "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={self._folder}", "about:blank",
        ]  # fmt: skip

        def hand_over() -> None:
            # Chromium reads commands from 3 and answers on 4. The copies come first: 3 or 4 may be in use.
            a, b = os.dup(to_child), os.dup(from_child)
            os.dup2(a, 3)
            os.dup2(b, 4)

        self._process = subprocess.Popen(
            arguments, pass_fds=(3, 4, to_child, from_child), preexec_fn=hand_over,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(to_child)
        os.close(from_child)
        target = self._send("Target.createTarget", {"url": "about:blank"}, session=None)["targetId"]
        attached = self._send("Target.attachToTarget", {"targetId": target, "flatten": True}, session=None)
        self._session = attached["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self._send(f"{domain}.enable")
        width, height = self.size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._send("Emulation.setDeviceMetricsOverride", metrics)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(timeout=30)
        os.close(self._read)
        os.close(self._write)

    def open(self, file: Path) -> None:
        """Load a page and wait until it says that it is ready."""
        self.open_address(file.resolve().as_uri())

    def open_address(self, address: str) -> None:
        """As :meth:`open`, of a page on this machine."""
        self._send("Page.navigate", {"url": address})
        end = time.monotonic() + 240
        while self.run("document.documentElement?.dataset.ready || ''") != "true":
            assert time.monotonic() < end, f"the page was not ready in time; it said {self.problems}"
            time.sleep(0.2)

    def run(self, script: str) -> Any:
        """Value of a script in the page."""
        answer = self._send("Runtime.evaluate", {"expression": script, "returnByValue": True, "awaitPromise": True})
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Click the middle of an element, with the mouse."""
        self.run(f"document.querySelector({selector!r}).scrollIntoView()")
        box = self.run(
            f"(() => {{const b = document.querySelector({selector!r}).getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            at = {"type": kind, "x": box[0], "y": box[1], "button": "left", "clickCount": 1}
            self._send("Input.dispatchMouseEvent", at)

    def choose_file(self, selector: str, file: Path) -> None:
        """Put a file into an input, as its dialog would."""
        found = self._send("Runtime.evaluate", {"expression": f"document.querySelector({selector!r})"})
        self._send("DOM.setFileInputFiles", {"files": [str(file)], "objectId": found["result"]["objectId"]})

    def drop(self, selector: str, *paths: Path) -> None:
        """Drop files or folders on an element, as out of a file manager."""
        box = self.run(
            f"(() => {{const b = document.querySelector({selector!r}).getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]})()"
        )
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self._send("Input.dispatchDragEvent", {"type": kind, "x": box[0], "y": box[1], "data": data})

    def save_downloads_to(self, folder: Path) -> None:
        """From now on, what a page offers for download is saved there."""
        self._send("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)}, session=None)

    def upload_at(self, bytes_per_second: float) -> None:
        """From now on, the page sends no faster than that; -1 is as fast as it can."""
        self._send("Network.enable")
        speed = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": bytes_per_second}
        self._send("Network.emulateNetworkConditions", {"offline": False} | speed)

    def type_into(self, selector: str, text: str) -> None:
        """Type into an input."""
        self.run(f"document.querySelector({selector!r}).focus()")
        self._send("Input.insertText", {"text": text})

    def press(self, key: str) -> None:
        """Press and let go of a key."""
        codes = {"Enter": (13, "\r"), "Tab": (9, ""), " ": (32, " "), "Escape": (27, "")}
        number, text = codes[key]
        for kind in ("keyDown", "keyUp"):
            event = {"type": kind, "key": key, "windowsVirtualKeyCode": number}
            self._send("Input.dispatchKeyEvent", event | ({"text": text} if kind == "keyDown" and text else {}))

    def wait_for(self, script: str, seconds: float = 60) -> Any:
        """The first value of a script that is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"{script} did not come true; the page said {self.problems}"
            time.sleep(0.1)
        return value

    def picture(self) -> np.ndarray:
        """(height, width, 3) of what is seen."""
        from PIL import Image

        # Two frames: what was asked for is drawn in the first.
        self.run("new Promise(d => requestAnimationFrame(() => requestAnimationFrame(() => d(1))))")
        data = self._send("Page.captureScreenshot", {"format": "png"})["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)

    def _send(self, method: str, parameters: dict[str, Any] | None = None, session: str | None = "own") -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters or {}}
        if session is not None:
            message["sessionId"] = self._session
        left = json.dumps(message).encode() + b"\0"
        while left:
            left = left[os.write(self._write, left) :]
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._hear(answer)

    def _hear(self, event: dict[str, Any]) -> None:
        """Keep what the page complains of."""
        kind, what = event.get("method"), event.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.problems.append(str(what["exceptionDetails"].get("exception", what["exceptionDetails"])))
        elif kind == "Runtime.consoleAPICalled" and what["type"] in ("error", "assert"):
            self.problems.append(" ".join(str(a.get("value", a.get("description"))) for a in what["args"]))
        elif kind == "Log.entryAdded" and what["entry"]["level"] == "error":
            self.problems.append(f"{what['entry']['text']} {what['entry'].get('url', '')}")

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], 120)
            assert ready, "Chromium does not answer"
            more = os.read(self._read, 1 << 20)
            assert more, "Chromium has ended"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found
