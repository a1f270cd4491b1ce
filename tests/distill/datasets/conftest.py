"""A server on this machine in place of the publishers'."""

import http.server
import threading
from dataclasses import replace
from functools import partial

import pytest

from distill.datasets import RECORDS


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder that a server on this machine offers; the records' URLs lead there."""
    pytest.importorskip("pooch")
    monkeypatch.delenv("DISTILL_DATA", raising=False)
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

        def send_header(self, key, value):
            longer = key == "Content-Length" and (folder / "cut").exists()
            super().send_header(key, str(int(value) + 100) if longer else value)

    asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, record in RECORDS.items():
        url = f"http://127.0.0.1:{server.server_port}/{record.archive.replace(' ', '%20')}"
        monkeypatch.setitem(RECORDS, name, replace(record, url=url))
    yield folder, asked
    server.shutdown()
    server.server_close()
