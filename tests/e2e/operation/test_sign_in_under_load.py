"""Sign-ins beside other work on the machine: how long they take, and who is sent away."""

import asyncio
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from argon2 import PasswordHasher

from tests.support.servers.merganser_server import ANSWER, PASSWORD, Server

BUSY = 8  # processes that do other work
LONGEST = 90  # seconds after which they end, whatever becomes of the test
LOOP = f"import time\nend = time.time() + {LONGEST}\nwhile time.time() < end: pass"
SIGN_IN = (
    "mutation ($name: String!, $word: String!) { authenticate(input: {username: $name, "
    "password: $word}) { scope errors { code ... on RateLimitedError { retryAfter } } } }"
)
TIME, MEMORY = 3, 16384  # of a hash: what is usual, but a quarter of the memory
FLOOD = 10  # sign-ins a second
LONG = 60  # passes of a hash that takes a second or so: a flood is more than any machine can hash


@contextmanager
def busy_machine() -> Generator[None]:
    """Eight processes that take all CPU they get, ended with the block."""
    working = [subprocess.Popen([sys.executable, "-S", "-c", LOOP]) for _ in range(BUSY)]
    try:
        time.sleep(1)  # until all of them run
        yield
    finally:
        for process in working:
            process.kill()
            process.wait()


@pytest.fixture(params=[TIME])
def alone(tmp_path: Path, request: pytest.FixtureRequest) -> Generator[Server]:
    """A server whose hashes take so many passes."""
    costs = {"ARGON2_MEMORY": str(MEMORY), "ARGON2_TIME": str(request.param)}
    server = Server(tmp_path, more={**costs, "NETWORK_FAILURES": "100000"})
    server.make("ada")
    yield server.start()
    server.stop()


def body(name: str, word: str) -> dict[str, object]:
    return {"query": SIGN_IN, "variables": {"name": name, "word": word}}


def hash_seconds() -> float:
    """How long one hash of these costs takes now, at the priority of the server."""
    began = time.monotonic()
    PasswordHasher(TIME, MEMORY, 1).hash(PASSWORD)
    return time.monotonic() - began


def test_a_single_sign_in_does_not_wait_for_other_work(alone: Server) -> None:
    """It takes 2 s at most, or, if more than these eight compete, little longer than its hash.

    A hash at the priority of a flood takes three times as long.
    """
    took, hashes = list[float](), list[float]()
    with busy_machine(), httpx.Client(base_url=alone.url, timeout=ANSWER) as http:
        for _ in range(5):
            hashes.append(hash_seconds())
            began = time.monotonic()
            answer = http.post("/graphql", json=body("ada", PASSWORD)).json()
            took.append(time.monotonic() - began)
            assert answer.get("data") == {"authenticate": {"scope": "MASTER", "errors": []}}, took
    shares = [each / alone for each, alone in zip(took, hashes, strict=True)]
    assert statistics.median(took) <= 2 or statistics.median(shares) <= 2.5, (took, hashes)


def test_a_single_sign_in_starts_no_process(alone: Server) -> None:
    """To start one takes longer than to hash, and it would run at a low priority."""
    with httpx.Client(base_url=alone.url, timeout=ANSWER) as http:
        answer = http.post("/graphql", json=body("ada", PASSWORD)).json()
    assert answer["data"] == {"authenticate": {"scope": "MASTER", "errors": []}}
    assert Path(f"/proc/{alone.pid}/task/{alone.pid}/children").read_text() == ""


@pytest.mark.parametrize("alone", [LONG], indirect=True)
async def test_a_long_queue_is_sent_away_and_other_requests_go_on(alone: Server) -> None:
    said, health = Counter[str](), list[float]()

    async def sign_in(http: httpx.AsyncClient, nth: int) -> None:
        await asyncio.sleep(nth / FLOOD)
        answer = (await http.post("/graphql", json=body(f"stranger{nth}", "wrong"))).json()
        if "errors" in answer:
            said[answer["errors"][0]["extensions"]["code"]] += 1
            return
        (error,) = answer["data"]["authenticate"]["errors"]
        said[error["code"]] += 1
        if error["code"] == "RATE_LIMITED":
            assert error["retryAfter"].startswith("PT")

    with busy_machine():
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=alone.url, timeout=60, limits=limits) as http:
            flood = asyncio.gather(*(sign_in(http, nth) for nth in range(120)))
            while not flood.done():
                began = time.monotonic()
                assert (await http.get("/health", timeout=60)).is_success
                health.append(time.monotonic() - began)
                await asyncio.sleep(0.2)
            await flood
    assert statistics.median(health) <= 2, health
    assert said.total() == 120
    assert set(said) <= {"AUTHENTICATION_FAILED", "RATE_LIMITED", "DEADLINE_EXCEEDED"}, said
    assert said["DEADLINE_EXCEEDED"] <= 3, said
    assert said["RATE_LIMITED"] >= 20, said
