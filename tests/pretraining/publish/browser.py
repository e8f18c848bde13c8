"""A headless Chromium, driven over its DevTools protocol through a pipe."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
FLAGS += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
# Pages list what of them has moved by itself, in `layoutShifts`.
LIST_SHIFTS = """window.layoutShifts = [];
const moved = ({node, previousRect, currentRect}) =>
  [node?.outerHTML ?? node?.textContent, JSON.stringify(previousRect), JSON.stringify(currentRect)].join(" ");
const list = (entries) => entries.getEntries().forEach((entry) => layoutShifts.push(...entry.sources.map(moved)));
new PerformanceObserver(list).observe({type: "layout-shift"});"""


class Browser:
    """One page; a context manager."""

    def __init__(self, folder: Path):
        """`folder` is the browser's own, for its profile."""
        assert CHROMIUM
        its_input, ours = os.pipe()
        theirs, its_output = os.pipe()
        # Chromium reads commands from its file 3, and writes what it has to say to its file 4. (bash: other shells
        # cannot redirect files whose numbers have two digits.)
        script = f'exec "$0" "$@" 3<&{its_input} 4>&{its_output}'
        command = ["bash", "-c", script, CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(command, pass_fds=(its_input, its_output), stderr=subprocess.DEVNULL)
        os.close(its_input)
        os.close(its_output)
        self.commands, self.answers = os.fdopen(ours, "wb", buffering=0), os.fdopen(theirs, "rb")
        self.count, self.session, self.events = 0, {}, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.addScriptToEvaluateOnNewDocument", source=LIST_SHIFTS)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.commands.close()
        self.answers.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command's result; events that come before it are collected."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters, **self.session}
        self.commands.write(json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self.count:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            assert byte, "the browser has ended"
            message += byte
        return json.loads(message)

    def open(self, url: str, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        """Opens a page, and waits until it is loaded."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, which must be of JSON."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def move(self, x: float, y: float, click: bool = False) -> None:
        """The pointer to a place in the window, and a click there."""
        for kind in ("mouseMoved", *(("mousePressed", "mouseReleased") if click else ())):
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def press(self, key: str) -> None:
        """A key of the keyboard, to what has the focus."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def complaints(self) -> list[dict[str, Any]]:
        """What the page wrote to the console, every exception, and every request but that for the page itself."""
        bad = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}
        found = [event for event in self.events if event.get("method") in bad]
        for event in self.events:
            if event.get("method") == "Network.requestWillBeSent":
                url = event["params"]["request"]["url"]
                if not url.startswith(("file:", "data:")):
                    found.append(event)
        return found
