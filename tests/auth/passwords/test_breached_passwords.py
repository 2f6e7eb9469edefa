"""Passwords that others have found out: by heart, from a file, and from a service."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from time import sleep
from typing import Any

import pytest

from models.runtime.environment import Environment
from resolvers.auth.passwords import breached_passwords

BAD = "Tr0ub4dor&3 of all"


def sha1(password: str) -> str:
    return hashlib.sha1(password.encode(), usedforsecurity=False).hexdigest().upper()


def with_options(world: Environment, **options: Any) -> Environment:
    return replace(world, options=replace(world.options, **options))


async def test_the_commonest_are_known_by_heart(world: Environment) -> None:
    for password in ("password123", "Passw0rd!", "12345678", "QWERTYUIOP"):
        assert await breached_passwords.is_breached(world, password)
    assert not await breached_passwords.is_breached(world, BAD)


@pytest.mark.parametrize("kind", ["hashes", "counted", "lower", "words", "crlf"])
async def test_a_file_is_looked_up_by_halves(world: Environment, tmp_path: Path, kind: str) -> None:
    words = [f"{BAD} {nth}" for nth in range(257)]
    lines = words if kind in {"words", "crlf"} else [sha1(word) for word in words]
    if kind == "lower":
        lines = [line.lower() for line in lines]
    lines = sorted(lines, key=str.encode)
    if kind == "counted":
        lines = [f"{line}:{nth + 1}" for nth, line in enumerate(lines)]
    end = "\r\n" if kind == "crlf" else "\n"
    file = tmp_path / "known"
    for closing in ("", end):
        file.write_bytes((end.join(lines) + closing).encode())
        asked = with_options(world, breached_list=file)
        for word in words:
            assert await breached_passwords.is_breached(asked, word), (word, closing)
        for other in (BAD, "", "\uffff", f"{BAD} 2577", words[0][:-1]):
            assert not await breached_passwords.is_breached(asked, other)


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\n\n\n", b"\xff\xfe"])
async def test_a_file_that_cannot_be_read_knows_nothing(
    world: Environment, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "known"
    if content is not None:
        file.write_bytes(content)
    assert not await breached_passwords.is_breached(with_options(world, breached_list=file), BAD)


class Service(BaseHTTPRequestHandler):
    asked: list[str]
    answer: str
    status: int
    pause: float

    def do_GET(self) -> None:
        self.asked.append(self.path)
        sleep(self.pause)
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.answer.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def service() -> Iterator[tuple[type[Service], str]]:
    class Ours(Service):
        answer, status, pause = "", 200, 0.0

    Ours.asked = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Ours)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Ours, f"http://127.0.0.1:{server.server_port}/range"
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_service_learns_five_digits(world: Environment, service: Any) -> None:
    handler, url = service
    digest = sha1(BAD)
    handler.answer = f"{'0' * 35}:7\r\n{digest[5:]}:3\r\n"
    asked = with_options(world, breached_range=url)
    assert await breached_passwords.is_breached(asked, BAD)
    assert handler.asked == [f"/range/{digest[:5]}"]
    handler.answer = f"{digest[5:]}:0\r\nnonsense\r\n"  # padding
    assert not await breached_passwords.is_breached(asked, BAD)


@pytest.mark.parametrize("how", ["down", "slow", "broken", "away"])
async def test_a_service_that_does_not_answer_is_passed_over(
    world: Environment, service: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, url = service
    monkeypatch.setattr(breached_passwords, "RANGE_TIMEOUT", 0.3)
    handler.answer = f"{sha1(BAD)[5:]}:3"
    if how == "down":
        url = "http://127.0.0.1:1/range"
    handler.pause = 1.0 if how == "slow" else 0.0
    handler.status = {"broken": 503, "away": 302}.get(how, 200)
    assert not await breached_passwords.is_breached(with_options(world, breached_range=url), BAD)
