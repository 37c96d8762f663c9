"""A plain HTTP server on the loopback that serves a folder, with ranges and with faults to order."""

from __future__ import annotations

import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Faults:
    """What goes wrong: `plan` maps a file's name to a list of faults, each used up by one request for that file.

    A fault is an HTTP status (int), "cut" (half of the body under the full length, then the connection ends),
    "short" (half of the body under its own length), "flip" (one byte changed) or a float (seconds of silence first).
    `always` maps a name to a fault of every request.
    """

    def __init__(self):
        self.plan: dict[str, list] = {}
        self.always: dict[str, object] = {}
        self.requests: list[tuple[str, int]] = []
        self.ranges = True
        self.bytes_per_second: float | None = None

    def next(self, name):
        if self.plan.get(name):
            return self.plan[name].pop(0)
        return self.always.get(name)

    def fetched(self, name):
        """First byte of each request for a file."""
        return [first for file, first in self.requests if file == name]


def _handler(root: Path, faults: Faults):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            path = root / self.path.lstrip("/")
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            faults.requests.append((path.name, int(asked[1]) if asked else 0))
            fault = faults.next(path.name)
            if isinstance(fault, float):
                time.sleep(fault)
            if isinstance(fault, int) or not path.is_file():
                return self.send_error(fault if isinstance(fault, int) else 404)
            body = path.read_bytes()
            if asked and faults.ranges:
                body = body[int(asked[1]) : int(asked[2]) + 1]
            if fault == "flip":
                body = body[:100] + bytes([body[100] ^ 1]) + body[101:]
            if fault == "short":
                body = body[: len(body) // 2]
            self.send_response(206 if asked and faults.ranges else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if faults.bytes_per_second:
                time.sleep(len(body) / faults.bytes_per_second)
            self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
            if fault == "cut":
                self.close_connection = True
            return None

    return Handler


@contextmanager
def file_server(root):
    """Serve the folder `root`; gives (URL, Faults)."""
    faults = Faults()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(Path(root), faults))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", faults
    finally:
        server.shutdown()
        server.server_close()
