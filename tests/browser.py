"""Headless Chromium over its debugging pipe: pages at a width, light or dark, by keyboard, and what the console and a screen reader get."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-sync",
    ),
    *("--disable-component-update", "--hide-scrollbars", "--remote-debugging-pipe", "about:blank"),
)


class Browser:
    """One page."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        given = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (to_read, to_write)]
        os.close(to_read)
        os.close(to_write)

        def as_expected() -> None:  # the browser reads from 3 and writes to 4
            os.dup2(given[0], 3)
            os.dup2(given[1], 4)

        self._process = subprocess.Popen(
            [CHROMIUM, f"--user-data-dir={profile}", *FLAGS],
            pass_fds=(3, 4), preexec_fn=as_expected, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in given:
            os.close(end)
        self._asked, self._buffer, self._session = 0, b"", ""
        self.console: list[str] = []
        """Errors and warnings, and what was written there."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol and its answer."""
        self._asked += 1
        message = {"id": self._asked, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._asked:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            got = os.read(self._read, 1 << 20)
            if not got:
                raise RuntimeError("the browser has ended")
            self._buffer += got
        line, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        told = answer.get("params", {})
        if answer.get("method") == "Runtime.exceptionThrown":
            self.console.append(str(told["exceptionDetails"].get("exception", told["exceptionDetails"])))
        elif answer.get("method") == "Runtime.consoleAPICalled":
            self.console.append(f"{told['type']}: {[a.get('value') for a in told['args']]}")
        elif answer.get("method") == "Log.entryAdded":
            self.console.append(f"{told['entry']['level']}: {told['entry']['text']}")
        return answer

    def open(
        self, address: str, *, width: int = 1440, height: int = 900, dark: bool = False, until: str = "true"
    ) -> None:
        """Opens a page and waits until an expression holds in it."""
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url="about:blank")
        self.ask("Page.navigate", url=address)
        self.wait(until)

    def value(self, expression: str) -> Any:
        """What an expression is in the page."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails'].get('exception', found)}")
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 120.0) -> None:
        """Until an expression holds."""
        end = time.monotonic() + seconds
        while not self.value(
            f"(() => {{ try {{ return {expression}; }} catch {{ return false; }} }})()"
        ):  # the page may still load
            if time.monotonic() > end:
                raise TimeoutError(f"{expression} does not hold; console: {self.console}")
            time.sleep(0.05)

    def key(self, key: str) -> None:
        """Presses and lets go of a key."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        code = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        pressed = {"key": key, "windowsVirtualKeyCode": code.get(key, 0)}
        self.ask("Input.dispatchKeyEvent", type="keyDown", **pressed, **text)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Writes what is seen, or the whole page, as PNG."""
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def read_aloud(self) -> list[tuple[str, str]]:
        """Role and name of each element that a screen reader gets."""
        nodes = self.ask("Accessibility.getFullAXTree")["nodes"]
        told = [n for n in nodes if not n.get("ignored")]
        return [(str(n.get("role", {}).get("value")), str(n.get("name", {}).get("value", ""))) for n in told]
