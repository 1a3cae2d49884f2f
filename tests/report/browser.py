"""A small driver of headless Chromium: the DevTools protocol over a pipe, without further packages."""

import fcntl
import json
import os
import pathlib
import select
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 90  # a busy machine is slow


def find() -> str | None:
    """The browser to use: $CHROMIUM, one on PATH, or one that playwright has downloaded."""
    named = os.environ.get("CHROMIUM")
    found = [named] if named else [path for name in NAMES if (path := shutil.which(name))]
    cache = pathlib.Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH", pathlib.Path.home() / ".cache/ms-playwright"))
    found += sorted(map(str, cache.glob("chromium-*/chrome-linux*/chrome")))
    return next(iter(found), None)


class Browser:
    """One browser with one tab.

    Attributes:
        problems: console errors and exceptions of the page. requests: addresses it asked for, data: excepted.
    """

    def __init__(self, executable: str, profile: pathlib.Path):
        commands, answers = os.pipe(), os.pipe()
        self._commands, self._answers = commands[1], answers[0]
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--mute-audio"]
        flags += [
            "--no-first-run",
            "--disable-extensions",
            "--disable-background-networking",
            "--remote-debugging-pipe",
        ]
        command = [executable, *flags, f"--user-data-dir={profile}", "--window-size=1400,1000", "about:blank"]
        # the browser reads commands at descriptor 3 and answers at 4; both ends first go where nothing is in the way
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands[0], answers[1])]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec 3<&{ends[0]} 4>&{ends[1]}; exec "$@"', "bash", *command],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (commands[0], answers[1], *ends):
            os.close(end)
        self._buffer, self._number, self._session = b"", 0, None
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Performance"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters):
        """One command; gives its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        return self._receive(lambda answer: answer.get("id") == self._number)

    def _receive(self, wanted):
        deadline = time.monotonic() + SECONDS
        while True:
            end = self._buffer.find(b"\0")
            if end < 0:
                ready, _, _ = select.select([self._answers], [], [], max(0, deadline - time.monotonic()))
                data = os.read(self._answers, 1 << 20) if ready else b""
                if not data:
                    raise RuntimeError("the browser ended or did not answer")
                self._buffer += data
                continue
            message, self._buffer = json.loads(self._buffer[:end]), self._buffer[end + 1 :]
            self._note(message)
            if wanted(message):
                if "error" in message:
                    raise RuntimeError(message["error"]["message"])
                return message.get("result", message.get("params"))

    def _note(self, message: dict) -> None:
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(parameters["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
            self.problems.append(json.dumps(parameters["args"])[:500])
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.problems.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not parameters["request"]["url"].startswith("data:"):
            self.requests.append(parameters["request"]["url"])

    def open(self, page: pathlib.Path, fragment: str = "") -> float:
        """Load a page and wait until its first step is drawn; gives the seconds."""
        self.send("Page.navigate", url="about:blank")  # or another fragment of the same page would not load it anew
        self.problems.clear()
        self.requests.clear()
        began = time.perf_counter()
        self.send("Page.navigate", url=page.as_uri() + fragment)
        self.until("document.readyState === 'complete' && (viewer === null || viewer.step !== null)")
        return time.perf_counter() - began

    def js(self, expression: str):
        """The value of an expression, awaited if it is a promise."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {json.dumps(answer['exceptionDetails'])[:500]}")
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait for a condition."""
        deadline = time.monotonic() + SECONDS
        while not self.js(condition):
            assert time.monotonic() < deadline, f"never true: {condition}"
            time.sleep(0.02)

    def key(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key, as a keyboard does."""
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, "Tab": 9}
        code = codes.get(key, ord(key[0].upper()))
        event = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        text = {"text": key} if len(key) == 1 else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def mouse(self, x: float, y: float, kind: str = "mouseMoved", *, held: bool = False) -> None:
        """Move (with the button ``held``), press or release the mouse at a place of the window."""
        button = {"button": "left"} if held or kind != "mouseMoved" else {}
        count = {"clickCount": 1} if kind != "mouseMoved" else {}
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, buttons=int(held), **button, **count)

    def box(self, selector: str) -> dict:
        """Where an element is in the window, after it was scrolled there: x, y, width, height."""
        find = f"document.querySelector({json.dumps(selector)})"
        self.js(f"{find}.scrollIntoView({{block: 'center'}})")
        return self.js(f"(({{x, y, width, height}}) => ({{x, y, width, height}}))({find}.getBoundingClientRect())")

    def close(self) -> None:
        """End the browser."""
        os.close(self._commands)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)
