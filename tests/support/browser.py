"""A headless Chromium, driven over the WebDriver protocol by chromedriver."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Self

import httpx

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_DRIVER = shutil.which("chromedriver")


class Browser:
    """A window 900 pixels wide; `requested` are the URLs it asked for since it was last read."""

    @staticmethod
    def missing() -> str:
        """What this machine lacks of it."""
        return "" if _CHROMIUM and _DRIVER else "Chromium with chromedriver (Debian: chromium-driver)"

    def __init__(self, patience: float = 600.0) -> None:
        assert _CHROMIUM and _DRIVER
        # It binds a free port twice, for both protocols: the second may be taken by then.
        port = next(filter(None, (self._start(_DRIVER) for _ in range(5))))
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=patience, trust_env=False)
        options = {
            "binary": _CHROMIUM,
            "args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=900,900"],
        }
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
        }
        session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{session['sessionId']}"

    def _start(self, driver: str) -> str | None:
        """The driver's port, if it could bind one."""
        self._driver = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
        assert self._driver.stdout is not None
        ports = (re.search(r"successfully on port (\d+)", line) for line in self._driver.stdout)
        return next((found[1] for found in ports if found), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._call("DELETE", self._session)
        self._client.close()
        self._driver.terminate()
        self._driver.wait()

    def reset(self) -> None:
        """Forget what former pages did."""
        self.open("about:blank")
        self._emulate("setEmulatedMedia", features=[])
        self._emulate("clearDeviceMetricsOverride")
        self.requested()
        self.complaints()

    def open(self, url: str) -> None:
        self._post("/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function body in the page returns."""
        return self._post("/execute/sync", {"script": script, "args": list(arguments)})

    def type(self, css: str, text: str) -> None:
        self._post(f"/element/{self._find(css)}/value", {"text": text})

    def click(self, css: str) -> None:
        self._post(f"/element/{self._find(css)}/click", {})

    def dark(self, on: bool) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if on else "light"}]
        self._emulate("setEmulatedMedia", features=features)

    def resize(self, width: int) -> None:
        self._emulate("setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", f"{self._session}/screenshot")))

    def requested(self) -> list[str]:
        messages = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """Errors on the console: of the scripts, and of the content security policy."""
        return [entry["message"] for entry in self._log("browser") if entry["level"] == "SEVERE"]

    def _log(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._post("/se/log", {"type": kind})
        return found

    def _find(self, css: str) -> str:
        found: str = self._post("/element", {"using": "css selector", "value": css})[_ELEMENT]
        return found

    def _emulate(self, what: str, **params: Any) -> None:
        self._post("/goog/cdp/execute", {"cmd": f"Emulation.{what}", "params": params})

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._call("POST", self._session + path, body)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = self._client.request(method, path, json=body).json()["value"]
        if isinstance(answer, dict) and "error" in answer:
            raise AssertionError(f"{answer['error']}: {answer['message']}")
        return answer
