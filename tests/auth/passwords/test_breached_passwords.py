"""Breached passwords: in the built-in list, in a file, and at a range service."""

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
from tests.support.case_loop import each_case

UNLISTED_PHRASE = "Tr0ub4dor&3 of all"


def sha1_digest(password: str) -> str:
    return hashlib.sha1(password.encode(), usedforsecurity=False).hexdigest().upper()


def environment_with_options(environment: Environment, **options: Any) -> Environment:
    return replace(environment, options=replace(environment.options, **options))


async def test_common_passwords_are_breached_without_a_list(environment: Environment) -> None:
    for password in ("password123", "Passw0rd!", "12345678", "QWERTYUIOP"):
        assert await breached_passwords.is_breached(environment, password)
    assert not await breached_passwords.is_breached(environment, UNLISTED_PHRASE)


@pytest.mark.parametrize("file_format", ["hashes", "counted", "lower", "words", "crlf"])
async def test_breached_password_is_found_in_sorted_file(
    environment: Environment, tmp_path: Path, file_format: str
) -> None:
    passwords = [f"{UNLISTED_PHRASE} {number}" for number in range(257)]
    lines = (
        passwords
        if file_format in {"words", "crlf"}
        else [sha1_digest(password) for password in passwords]
    )
    if file_format == "lower":
        lines = [line.lower() for line in lines]
    lines = sorted(lines, key=str.encode)
    if file_format == "counted":
        lines = [f"{line}:{number + 1}" for number, line in enumerate(lines)]
    line_end = "\r\n" if file_format == "crlf" else "\n"
    file = tmp_path / "known"
    for last_line_end in ("", line_end):
        file.write_bytes((line_end.join(lines) + last_line_end).encode())
        configured_environment = environment_with_options(environment, breached_passwords_file=file)
        for password in passwords:
            assert await breached_passwords.is_breached(configured_environment, password), (
                password,
                last_line_end,
            )
        for missing_password in (
            UNLISTED_PHRASE,
            "",
            "\uffff",
            f"{UNLISTED_PHRASE} 2577",
            passwords[0][:-1],
        ):
            assert not await breached_passwords.is_breached(
                configured_environment, missing_password
            )


async def test_unreadable_file_contains_no_password(
    environment: Environment, tmp_path: Path
) -> None:
    file = tmp_path / "known"
    for case in each_case([None, b"", b"\n", b"\n\n\n", b"\xff\xfe"]):
        with case as content:
            if content is not None:
                file.write_bytes(content)
            assert not await breached_passwords.is_breached(
                environment_with_options(environment, breached_passwords_file=file), UNLISTED_PHRASE
            )


class RangeServiceHandler(BaseHTTPRequestHandler):
    requested_paths: list[str]
    answer: str
    status: int
    pause: float

    def do_GET(self) -> None:
        self.requested_paths.append(self.path)
        sleep(self.pause)
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.answer.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def service() -> Iterator[tuple[type[RangeServiceHandler], str]]:
    class StubHandler(RangeServiceHandler):
        answer, status, pause = "", 200, 0.0

    StubHandler.requested_paths = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), StubHandler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield StubHandler, f"http://127.0.0.1:{server.server_port}/range"
    server.shutdown()
    thread.join()
    server.server_close()


async def test_range_service_receives_five_digits_of_the_hash(
    environment: Environment, service: Any
) -> None:
    handler, url = service
    digest = sha1_digest(UNLISTED_PHRASE)
    handler.answer = f"{'0' * 35}:7\r\n{digest[5:]}:3\r\n"
    configured_environment = environment_with_options(environment, breached_passwords_url=url)
    assert await breached_passwords.is_breached(configured_environment, UNLISTED_PHRASE)
    assert handler.requested_paths == [f"/range/{digest[:5]}"]
    handler.answer = f"{digest[5:]}:0\r\nnonsense\r\n"  # a line of padding has the count 0
    assert not await breached_passwords.is_breached(configured_environment, UNLISTED_PHRASE)


@pytest.mark.parametrize("failure", ["down", "slow", "broken", "away"])
async def test_failing_range_service_is_ignored(
    environment: Environment, service: Any, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, url = service
    monkeypatch.setattr(breached_passwords, "RANGE_TIMEOUT", 0.3)
    handler.answer = f"{sha1_digest(UNLISTED_PHRASE)[5:]}:3"
    if failure == "down":
        url = "http://127.0.0.1:1/range"
    handler.pause = 1.0 if failure == "slow" else 0.0
    handler.status = {"broken": 503, "away": 302}.get(failure, 200)
    assert not await breached_passwords.is_breached(
        environment_with_options(environment, breached_passwords_url=url), UNLISTED_PHRASE
    )
