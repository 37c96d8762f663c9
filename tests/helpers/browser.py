"""Pages opened in a headless Chromium that reaches no host: what it made of them, and what they asked for."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
)
_OWN = "not an origin"
"""Who asks where the browser itself wants something, such as the time."""
_NUMBER = re.compile(r"(?<![\w.#-])[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?(?![\w.]*\w)")


def find():
    """The browser's program, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page(HTMLParser):
    """The document that the browser made: its text, the cells of its tables, counts of elements, and addresses."""

    def __init__(self, dom, requests):
        super().__init__()
        self.requests = requests
        self.cells, self.texts, self.addresses, self.counts = [], [], [], {}
        self._in_cell = self._in_style = False
        self.feed(dom)

    def handle_starttag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        named = dict(attributes)
        self.addresses += [named[key] for key in ("src", "href", "xlink:href") if key in named]
        if tag == "td":
            self._in_cell = True
            self.cells.append("")
        self._in_style = tag == "style"

    def handle_endtag(self, tag):
        if tag == "td":
            self._in_cell = False
        if tag == "style":
            self._in_style = False

    def handle_data(self, data):
        if self._in_cell:
            self.cells[-1] += f" {data}"
        if not self._in_style:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(self.texts)

    def numbers(self):
        """Numbers as they are written in the cells of tables."""
        return [found for cell in self.cells for found in _NUMBER.findall(cell)]


def agrees(shown, values):
    """Whether one of `values` reads `shown` when rounded to the places that it has."""
    mantissa, _, exponent = shown.replace(",", "").partition("e")
    places = len(mantissa.partition(".")[2])
    step = 10.0 ** (int(exponent or 0) - places)
    number = float(shown.replace(",", ""))
    return any(abs(value * scale - number) <= 0.501 * step for value in values for scale in (1, 100))


def numbers_of(record):
    """All numbers within a JSON value, and those that its texts hold."""
    if isinstance(record, dict):
        return [number for one in record.values() for number in numbers_of(one)]
    if isinstance(record, list):
        return [number for one in record for number in numbers_of(one)]
    if isinstance(record, str):
        return [float(found.replace(",", "")) for found in _NUMBER.findall(record)]
    return [float(record)] if isinstance(record, (int, float)) and not isinstance(record, bool) else []


class Browser:
    """Opens pages one at a time, each in a process of its own, under a profile in `folder`."""

    def __init__(self, program, folder):
        self._program, self._folder = program, folder

    def open(self, path, timeout=240):
        log = self._folder / "network.json"
        words = [self._program, *_FLAGS, f"--user-data-dir={self._folder / 'profile'}", f"--log-net-log={log}"]
        words += ["--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", path.as_uri()]
        words += ["--no-sandbox"] if os.geteuid() == 0 else []
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        record = json.loads(log.read_text())
        kind = record["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
        started = [event.get("params", {}) for event in record["events"] if event["type"] == kind]
        return Page(done.stdout, [one["url"] for one in started if "url" in one and one.get("initiator") != _OWN])
