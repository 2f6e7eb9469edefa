"""`merganser serve` with its demo account and two users, as a browser and a neighbour meet it."""

import os
import signal
import smtplib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from merganser.demonstration import ADDRESS, kept
from tests.conftest import raw_message

ROOT = Path(__file__).parents[2]
LETTERS = 120  # of the demo account
PATIENCE = 40.0  # seconds until it answers
OWNER = "the-key-of-whoever-owns-the-machine"
PASSWORDS = {"ada": "wicked lantern", "bob": "copper kettle"}

CREATE = """mutation ($input: UserCreateInput!) {
  userCreate(input: $input) { user { id } errors { message } } }"""
KEY = """mutation ($input: ApiKeyCreateInput!) {
  apiKeyCreate(input: $input) { secret errors { message } } }"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class House:
    """A running server, and the keys of those who live there: `demo`, `ada` and `bob`."""

    data: Path
    http: int = field(default_factory=free_port)
    lmtp: int = field(default_factory=free_port)
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "MERGANSER_DATA": str(self.data),
            "MERGANSER_HTTP": f"127.0.0.1:{self.http}",
            "MERGANSER_LMTP": f"127.0.0.1:{self.lmtp}",
            "MERGANSER_BOOTSTRAP_KEY": OWNER,
            "MERGANSER_ARGON2_MEMORY": "8",
            "MERGANSER_ARGON2_TIME": "1",
        }

    def ask(self, key: str, document: str, **variables: Any) -> Any:
        """The data of an answer without errors."""
        answer = httpx.post(
            f"{self.base}/graphql",
            json={"query": document, "variables": variables},
            headers={"Authorization": f"Bearer {key}"},
        ).json()
        assert "errors" not in answer, answer
        return answer["data"]

    def move_in(self, name: str) -> None:
        """An account with a password, a key, and a letter from Carol."""
        new = {"username": name, "address": f"{name}@example.org", "password": PASSWORDS[name]}
        made = self.ask(OWNER, CREATE, input=new)["userCreate"]
        assert made["errors"] == []
        key = {"name": "browser", "user": {"id": made["user"]["id"]}}
        self.keys[name] = self.ask(OWNER, KEY, input=key)["apiKeyCreate"]["secret"]
        self.send(f"{name}@example.org", raw_message(f"Hello {name}"))

    def send(self, to: str, raw: bytes, sender: str = "carol@example.com") -> None:
        """Hand a message in by LMTP, as a neighbour would."""
        with smtplib.LMTP("127.0.0.1", self.lmtp) as client:
            client.sendmail(sender, to, raw)

    def answering(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until it is up."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and process.poll() is None:
            try:
                httpx.get(f"{self.base}/health").raise_for_status()
            except httpx.ConnectError:
                time.sleep(0.05)
            else:
                return
        process.kill()
        raise AssertionError((self.data.parent / "log").read_text())


@contextmanager
def serving(folder: Path) -> Iterator[House]:
    """Serve until the end of the block, on free ports, with all data in `folder`."""
    house = House(folder / "var")
    words = [sys.executable, "-m", "merganser", "serve", "--demo", "--demo-count", str(LETTERS)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            words, cwd=ROOT, env=house.env, stdout=subprocess.DEVNULL, stderr=log
        )
    house.answering(process)
    try:
        account = kept(house.data)
        assert account
        assert account.key
        assert account.address == ADDRESS
        house.keys["demo"] = account.key
        for name in PASSWORDS:
            house.move_in(name)
        yield house
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert "Traceback" not in (folder / "log").read_text()
