# SPDX-License-Identifier: GPL-2.0-or-later
"""A headless Chromium, driven through chromedriver's HTTP interface (W3C WebDriver)."""

from __future__ import annotations

import base64
import http.client
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's number, as W3C WebDriver has it
KEYS = {
    "tab": "\ue004",
    "left": "\ue012",
    "up": "\ue013",
    "right": "\ue014",
    "down": "\ue015",
    "enter": "\ue007",
}
_WAIT_S = 60


class Browser:
    """One tab. Every call raises RuntimeError with the driver's words when it fails."""

    def __init__(self, port: int, profile: Path) -> None:
        self._port = port
        binary = shutil.which("chromium")
        assert binary is not None, "chromium is not installed: run .ci/packages"
        options = {"binary": binary, "args": [*_FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{answer['sessionId']}"

    def open(self, page: Path | str) -> None:
        """Load a file or an address, until its load event."""
        self._post("/url", {"url": page if isinstance(page, str) else page.resolve().as_uri()})

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """The viewport in CSS pixels, and the colours that the reader prefers."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._cdp("Emulation.setDeviceMetricsOverride", metrics)
        self._cdp("Emulation.setScrollbarsHidden", {"hidden": True})
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._cdp("Emulation.setEmulatedMedia", {"features": [scheme]})

    def run(self, script: str, *arguments: object) -> Any:
        """What a function body returns in the page."""
        return self._post("/execute/sync", {"script": script, "args": list(arguments)})

    def until(self, script: str) -> Any:
        """What a function body returns once it is true; it is asked again before each frame is drawn."""
        wait = (
            "const done = arguments[arguments.length - 1], ask = new Function(arguments[0]);"
            "const step = () => { const got = ask(); if (got) done(got); else requestAnimationFrame(step); };"
            "step();"
        )
        return self.wait_for(wait, script)

    def wait_for(self, script: str, *arguments: object) -> Any:
        """What a function body gives to its last argument, whenever it does."""
        return self._post("/execute/async", {"script": script, "args": list(arguments)})

    def press(self, *keys: str) -> None:
        """Type keys, by their name in KEYS or as they are, at whatever has the focus."""
        steps = [{"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
        self._post("/actions", {"actions": [{"type": "key", "id": "keys", "actions": steps}]})

    def click(self, selector: str) -> None:
        """Click on an element."""
        found = self._post("/element", {"using": "css selector", "value": selector})
        self._post(f"/element/{found[_ELEMENT]}/click", {})

    def complaints(self) -> list[str]:
        """What the console said since the last call."""
        entries = self._post("/se/log", {"type": "browser"})
        return [f"{entry['level']}: {entry['message']}" for entry in entries]

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """A screenshot, of the whole page or of what is in sight."""
        answer = self._cdp("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole})
        path.write_bytes(base64.b64decode(answer["data"]))

    def close(self) -> None:
        """End the browser."""
        self._call("DELETE", self._session)

    def _cdp(self, command: str, parameters: dict[str, Any]) -> Any:
        return self._post("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._call("POST", self._session + path, body)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_WAIT_S)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            value = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(value, dict) and "error" in value:
            raise RuntimeError(f"{path}: {value['error']}: {value['message']}")
        return value


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with a new, empty profile in that folder."""
    driver = shutil.which("chromedriver")
    assert driver is not None, "chromedriver is not installed: run .ci/packages"
    with subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = None
            for line in process.stdout:
                found = re.search(r"started successfully on port (\d+)", line)
                if found:
                    break
            assert found is not None, "chromedriver did not start"
            browser = Browser(int(found[1]), profile)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            process.terminate()
