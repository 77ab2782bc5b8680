"""A headless Chromium, driven over the pipe of its DevTools protocol: https://chromedevtools.github.io/devtools-protocol/."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
"""What distributions call it."""
FLAGS = (
    "--headless=new", "--disable-gpu", "--no-first-run", "--disable-extensions", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
REACHABLE = "a[href], summary, button, input, select, textarea, [tabindex='0']"
"""What a keyboard must reach, where it is shown."""
AXE = files("axe_core_python") / "axe.min.js"
"""The rules of WCAG 2 as a script: https://github.com/dequelabs/axe-core."""


def program() -> str | None:
    """The browser of this machine; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page of a browser. What it asks of the network and what goes wrong in it is collected."""

    def __init__(self, sent: int, received: int):
        self.sent, self.received = os.fdopen(sent, "wb"), os.fdopen(received, "rb")
        self.number, self.session = 0, {}
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The browser's answer to one command."""
        self.number += 1
        self.sent.write(json.dumps({"id": self.number, "method": method, "params": params} | self.session).encode() + b"\0")
        self.sent.flush()
        while (message := self._message()).get("id") != self.number:
            self._event(message)
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

    def open(self, url: str) -> None:
        """Load a page, to the end of what it loads."""
        self.requests, self.problems, self.loaded = [], [], False
        self.call("Page.navigate", url=url)
        while not self.loaded:
            self._event(self._message())

    def scripts(self, run: bool) -> None:
        """Whether pages may run their scripts. Layout needs none, and without them a page is there sooner."""
        self.call("Emulation.setScriptExecutionDisabled", value=not run)

    def look(self, width: int, scheme: str) -> None:
        """Set the width in CSS pixels and the colours that the reader prefers, light or dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def value(self, script: str) -> Any:
        """What an expression of JavaScript gives; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def violations(self, left_out: str = "", only: str = "") -> list[str]:
        """What breaks a rule of WCAG 2, level A or AA, but the one left out, or `only` this rule: the rule and one place."""
        self.value(AXE.read_text(encoding="utf-8"))
        rules = [only] if only else ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
        options = {"runOnly": rules, "resultTypes": ["violations"], "rules": {left_out: {"enabled": False}} if left_out else {}}
        found = self.value(f"axe.run({json.dumps(options)}).then(found => found.violations)")
        return [f"{rule['id']}: {rule['nodes'][0]['html'][:150]} {rule['nodes'][0]['failureSummary']}" for rule in found]

    def unreached(self) -> list[str]:
        """What is shown and can be used, but is not reached with the Tab key."""
        self.value(
            f'window.wanted = new Set([...document.querySelectorAll("{REACHABLE}")]'
            ".filter(part => part.checkVisibility({visibilityProperty: true}) && part.tabIndex >= 0 && !part.disabled));"
            "document.addEventListener('focusin', event => window.wanted.delete(event.target));"
            "document.activeElement.blur()"
        )
        for _ in range(self.value("window.wanted.size") + 1):
            self.call("Input.dispatchKeyEvent", type="rawKeyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
        return self.value("[...window.wanted].map(part => part.outerHTML.slice(0, 150))")

    def _message(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self.received.read(1)) != b"\0":
            assert byte, "the browser has ended"
            text += byte
        return json.loads(text)

    def _event(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self.loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                self.problems.append(params["exceptionDetails"]["text"])
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.problems.append(str([part.get("value", part.get("description")) for part in params["args"]]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            case "Page.javascriptDialogOpening":
                self.problems.append(f"a dialog: {params['message']}")


@contextmanager
def started(chromium: str, profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, ended at the end."""
    (inside, to), (back, outside) = os.pipe(), os.pipe()
    flags = [*FLAGS, f"--user-data-dir={profile}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    command = ["bash", "-c", f'exec "$@" 3<&{inside} 4>&{outside}', "bash", chromium, *flags]
    with subprocess.Popen(command, pass_fds=(inside, outside), stderr=subprocess.DEVNULL) as process:
        os.close(inside)
        os.close(outside)
        try:
            yield Browser(to, back)
        finally:
            process.terminate()
