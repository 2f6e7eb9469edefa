"""An object store that speaks S3."""

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
    """The URL of a server that speaks S3, with one bucket."""
    if not find_spec("moto"):
        pytest.skip("moto is not installed")
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-p", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        places = (re.search(r"http://127\S+?:\d+", line) for line in server.stderr)
        place = next(found.group() for found in places if found)
        # A pipe that nobody reads fills up with the log, and then the server waits.
        threading.Thread(target=server.stderr.read, daemon=True).start()
        httpx.put(f"{place}/bucket").raise_for_status()
        yield place
        server.terminate()
