"""An S3 server for tests of object stores."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec

import httpx
import pytest


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The URL of an S3 server with one bucket."""
    if not find_spec("moto"):
        pytest.skip("moto is not installed")
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-p", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        matches = (re.search(r"http://127\S+?:\d+", line) for line in server.stderr)
        url = next(match.group() for match in matches if match)
        # The server would wait if the pipe with its log were full.
        threading.Thread(target=server.stderr.read, daemon=True).start()
        httpx.put(f"{url}/bucket").raise_for_status()
        yield url
        server.terminate()
