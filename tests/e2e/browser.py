"""A headless Chromium of one version, driven over a pipe by the DevTools protocol
(https://chromedevtools.github.io/devtools-protocol/): what a person does with a page, without any further package."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fetched import SAFELY, npm_package

PACKAGE = "@sparticuz/chromium@153.0.0"
UNPACK = "const [, file] = process.argv; process.stdin.pipe(require('zlib').createBrotliDecompress()).pipe(process.stdout)"
SWITCHES = (
    "--headless --no-sandbox --remote-debugging-pipe --disable-gpu --disable-dev-shm-usage --no-first-run --no-zygote "
    "--disable-background-networking --disable-component-update --hide-scrollbars --mute-audio"
).split()
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9}


def chromium() -> Path:
    """The unpacked browser: npm's package carries it compressed, with the libraries and a font that it needs."""
    bin_ = npm_package(PACKAGE, "chromium-153") / "bin"
    done = bin_ / "chromium"
    if not done.exists():
        for name in ("al2023.tar", "fonts.tar", "chromium"):
            with (bin_ / f"{name}.br").open("rb") as packed, (bin_ / f"{name}.part").open("wb") as unpacked:
                subprocess.run(["node", "-e", UNPACK], stdin=packed, stdout=unpacked, check=True, timeout=120)
            if name.endswith(".tar"):
                with tarfile.open(bin_ / f"{name}.part") as archive:
                    archive.extractall(bin_, **SAFELY)
        (bin_ / "chromium.part").chmod(0o755)
        (bin_ / "chromium.part").rename(done)
    return done


class Browser:
    """One page of one browser. `requested`: what the page asked the network for; `said`: what the browser said of it."""

    def __init__(self) -> None:
        binary = chromium()
        self._home = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        (Path(self._home.name) / "fonts.conf").write_text(
            f"<fontconfig><dir>/usr/share/fonts</dir><dir>{binary.parent}/fonts</dir><cachedir>{self._home.name}</cachedir></fontconfig>"
        )
        theirs, self._to = os.pipe()
        self._from, back = os.pipe()
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" 3<&{theirs} 4>&{back}', str(binary), *SWITCHES, f"--user-data-dir={self._home.name}"],
            pass_fds=(theirs, back),
            stderr=subprocess.DEVNULL,
            env={
                **os.environ,
                "LD_LIBRARY_PATH": str(binary.parent / "lib"),
                "FONTCONFIG_FILE": f"{self._home.name}/fonts.conf",
            },
        )
        os.close(theirs)
        os.close(back)
        self._numbers, self._held = itertools.count(1), b""
        self.requested: list[str] = []
        self.said: list[str] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
        self._home.cleanup()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            got = self._message()
            if got.get("id") == number:
                assert "error" not in got, got
                return dict(got["result"])

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._held:
            assert select.select([self._from], [], [], 60)[0], "the browser says nothing"
            piece = os.read(self._from, 1 << 20)
            assert piece, "the browser has gone"
            self._held += piece
        one, _, self._held = self._held.partition(b"\0")
        got: dict[str, Any] = json.loads(one)
        params = got.get("params", {})
        if got.get("method") == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        elif got.get("method") == "Log.entryAdded":
            self.said.append(params["entry"]["text"])
        elif got.get("method") == "Runtime.exceptionThrown":
            thrown = params["exceptionDetails"]  # the exception may be missing, and its description too
            self.said.append(thrown.get("exception", {}).get("description") or thrown["text"])
        return got

    # --- what a person does

    def open(self, url: str, *, width: int = 1000, height: int = 760, dark: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        self.until(lambda: self.js("document.readyState") == "complete")

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, holds: Callable[[], Any], *, within_s: float = 30) -> None:
        end = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < end, (self.js("document.body.innerText"), self.said)
            time.sleep(0.02)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str, *, shift: bool = False) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        words = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": 8 * shift}
        self.call("Input.dispatchKeyEvent", type="keyDown", **words, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **words)

    def click(self, selector: str) -> None:
        box = self.js(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({_find(selector)}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def text(self, selector: str) -> list[str]:
        """What all such elements show."""
        found: list[str] = self.js(f"[...document.querySelectorAll({json.dumps(selector)})].map(one => one.innerText)")
        return found

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


def _find(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)})"
