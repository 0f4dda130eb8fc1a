"""A real Chromium that shows pages without a screen, spoken to over two pipes.

Source of the protocol: https://chromedevtools.github.io/devtools-protocol/. With ``--remote-debugging-pipe`` it is JSON
messages that end with a zero byte, read from descriptor 3 and written to 4.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ENDS_WITHIN = 20
_OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--disable-extensions", "--remote-debugging-pipe",
)  # fmt: skip


@dataclass
class Page:
    """One tab; ``told`` is everything that its console, its log and its network said."""

    _send: int
    _receive: Any
    _session: str = ""
    _last: int = 0
    told: list[dict[str, Any]] = field(default_factory=list)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; an error with what the browser said when it refuses."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        os.write(
            self._send, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while (answer := self._next()).get("id") != self._last:
            self.told.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result = answer["result"]
        assert isinstance(result, dict)
        return result

    def attach(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, path: Path) -> None:
        """Show a file, and wait until all of it is there."""
        self.told.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not self._told("Page.loadEventFired"):
            self.told.append(self._next())

    def look(self, width: int, *, dark: bool = False, media: str = "screen") -> None:
        """As a screen of this width, or as paper."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def value(self, expression: str) -> Any:
        """What a JavaScript expression comes to."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self) -> bytes:
        """The whole page as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def complaints(self) -> list[str]:
        """Errors and warnings of the console and the log, and exceptions of scripts."""
        methods = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(each) for method in methods for each in self._told(method)]

    def requests(self) -> list[str]:
        """Every address that was asked for."""
        return [each["params"]["request"]["url"] for each in self._told("Network.requestWillBeSent")]

    def _told(self, method: str) -> list[dict[str, Any]]:
        return [each for each in self.told if each.get("method") == method]

    def _next(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self._receive.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser went away")
            data += byte
        message = json.loads(bytes(data))
        assert isinstance(message, dict)
        return message


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A page of a Chromium that runs until the block ends; what it says goes to a log in ``profile``."""
    profile.mkdir(parents=True, exist_ok=True)
    from_us, to_them = os.pipe()
    from_them, to_us = os.pipe()
    command = f'exec 3<&{from_us} 4>&{to_us}; exec "$@"'
    started = ["bash", "-c", command, "bash", "chromium", *_OPTIONS, f"--user-data-dir={profile / 'data'}"]
    with (profile / "log").open("wb") as log:
        process = subprocess.Popen(started, pass_fds=(from_us, to_us), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    os.close(from_us)
    os.close(to_us)
    try:
        with os.fdopen(from_them, "rb") as receive:
            page = Page(to_them, receive)
            page.attach()
            yield page
            page._session = ""
            page.call("Browser.close")
            process.wait(_ENDS_WITHIN)
    finally:
        os.close(to_them)
        process.kill()
        process.wait()
