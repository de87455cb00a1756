"""Chromium without a window, driven over its own DevTools protocol: no driver to install beside the browser."""

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager

import websocket

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "Chromium is not installed: on Debian, apt-get install chromium"
# No sandbox, since a container's root has none; it opens our own pages only, and no name but localhost resolves.
_OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--remote-debugging-port=0",
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")  # fmt: skip


@contextmanager
def browser(folder):
    """Yield a `Page` of a Chromium that keeps its profile in `folder`, and end it afterwards."""
    command = [CHROMIUM, *_OPTIONS, f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            address = f"http://127.0.0.1:{_port(folder / 'DevToolsActivePort', process)}/json/new"
            with urllib.request.urlopen(urllib.request.Request(address, method="PUT"), timeout=30) as answer:
                url = json.load(answer)["webSocketDebuggerUrl"]
            yield Page(websocket.create_connection(url, suppress_origin=True, timeout=180))
        finally:
            process.terminate()


def _port(file, process, seconds=60):
    """The port that the browser chose, once it has written it down."""
    deadline = time.monotonic() + seconds
    while not (file.exists() and file.read_text().count("\n")):
        assert process.poll() is None and time.monotonic() < deadline, "Chromium did not start"
        time.sleep(0.05)
    return int(file.read_text().splitlines()[0])


class Page:
    """One tab. `errors` gathers what the page's console, its scripts and its requests complain of."""

    def __init__(self, connection):
        self.errors = []
        self._connection, self._numbers, self._loaded = connection, itertools.count(), False
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Send one command of the protocol; returns its result."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def open(self, url, width=1280, height=900):
        """Load `url` in a window of that size (CSS pixels) and wait until it is there, images too."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._loaded = False
        self.call("Page.navigate", url=url)
        while not self._loaded:
            self._receive()

    def evaluate(self, script):
        """The value of a JavaScript expression in the page; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression, seconds=120):
        """Wait until a JavaScript expression is true; returns its value."""
        deadline = time.monotonic() + seconds
        while not (found := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"still not so after {seconds} s: {expression}"
            time.sleep(0.1)
        return found

    def click(self, element):
        """Press the left mouse button in the middle of the element that a JavaScript expression gives."""
        middle = "(box => box?.width && [box.x + box.width / 2, box.y + box.height / 2])"
        x, y = self.until(f"{middle}(({element})?.getBoundingClientRect())")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path):
        """What the window shows, as a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _receive(self):
        message = json.loads(self._connection.recv())
        told = message.get("params", {})
        if message.get("method") == "Page.loadEventFired":
            self._loaded = True
        elif message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(told["exceptionDetails"]["text"])
        elif message.get("method") == "Runtime.consoleAPICalled" and told["type"] == "error":
            self.errors.append(str(told["args"]))
        elif message.get("method") == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        return message
