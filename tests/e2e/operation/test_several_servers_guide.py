"""docs/several-servers.md: its commands and its HAProxy configuration run as they are printed.

Only addresses, paths and passwords of the page are replaced by those of the test. `scp` becomes
`cp`, since both servers run on this machine.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect as connect_socket
from websockets.typing import Subprotocol

from bench.servers.ports import free_port
from tests.conftest import raw_message
from tests.support.mail_servers.lmtp_client import connect as connect_lmtp
from tests.support.operations.certificate_operations import Signer
from tests.support.run_scope import CI
from tests.support.servers.merganser_server import ROOT
from tests.support.stores import store_fixtures

PAGE = ROOT / "docs/several-servers.md"
START = 120.0  # seconds for a server or the balancer to be ready, on a busy machine
STOP = 60.0
PUBLIC = "mail.example.org"
NAMES = ("mx1", "mx2")


def printed(kind: str) -> str:
    """The only block of this kind on the page."""
    (block,) = re.findall(
        rf"^```(?:sh )?{kind}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    return str(block)


@dataclass
class Site:
    """The machines of the page, all on this one."""

    folder: Path
    places: dict[str, str]  # of the page, and what stands for them here

    def replaced(self, text: str, name: str = "") -> str:
        """The text with the addresses, paths and passwords of this test."""
        text = re.sub(r"scp -p (\w+)\.example\.org:/var/lib/merganser", self._copied, text)
        text = text.replace("/var/lib/merganser", str(self.folder / name))
        for place, here in self.places.items():
            text = text.replace(place, here)
        return text

    def _copied(self, found: re.Match[str]) -> str:
        return f"cp -p {self.folder / found[1]}"

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def run(self, name: str, command: str, **more: str) -> "subprocess.Popen[bytes]":
        """Run a script of the page; its last command replaces the shell."""
        *before, last = self.replaced(command, name).rstrip().splitlines()
        script = "\n".join(["set -e", "umask 077", *before, f"exec {last}", ""])
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        keys = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "something"}
        cheap = {"MERGANSER_ARGON2_MEMORY": "8", "MERGANSER_ARGON2_TIME": "1"}
        tree = {"PYTHONPATH": str(ROOT)}  # not the code that the command was installed with
        env = {"PATH": path, "HOME": str(self.folder), **tree, **keys, **cheap, **more}
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                ["/bin/bash", "-c", script],
                cwd=ROOT,
                env=env,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def wait(self, name: str, process: "subprocess.Popen[bytes]", url: str) -> None:
        """Wait until this address answers 200."""
        until = time.monotonic() + START
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(url, verify=False, timeout=10).is_success:  # noqa: S501 - own CA
                    return
            assert process.poll() is None, self.log(name)
            assert time.monotonic() < until, self.log(name)
            time.sleep(0.1)


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, postgres: str, request: pytest.FixtureRequest
) -> Iterator[Site]:
    """Both servers and the balancer, started in the order of the page."""
    if not CI and shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed")
    bucket = request.getfixturevalue("s3_server")
    httpx.put(f"{bucket}/mail").raise_for_status()
    store = store_fixtures.run(store_fixtures.beside(postgres, "several")).replace("+asyncpg", "")
    folder = tmp_path_factory.mktemp("several")
    certificate, key = Signer().issue([PUBLIC], begin=datetime.now(UTC) - timedelta(days=1))
    (folder / "public.pem").write_text(certificate + key)
    places = {
        "postgresql://merganser:password@db.example.org/merganser": f"'{store}'",
        "https://s3.example.org": bucket,
        "/etc/ssl/mail.example.org.pem": str(folder / "public.pem"),
        "10.0.0.10:443": f"127.0.0.1:{free_port()}",
        "10.0.0.10:8024": f"127.0.0.1:{free_port()}",
    }
    ports = dict[str, int]()
    for nth, name in enumerate(NAMES, 11):
        http = free_port()
        places[f"10.0.0.{nth}:8025"] = f"127.0.0.1:{http}"
        places[f"10.0.0.{nth}:8024"] = f"127.0.0.1:{free_port()}"
        ports[name] = http
    places["10.0.0.10"] = "127.0.0.1"
    made = Site(folder, places)
    running = []
    try:
        for name, block in zip(NAMES, ("first-server", "second-server"), strict=True):
            process = made.run(name, printed(block))
            running.append(process)
            made.wait(name, process, f"http://127.0.0.1:{ports[name]}/health/ready")
        rules = printed("haproxy")
        for name in NAMES:
            rules = re.sub(rf"(server {name} .*check port) 8025", rf"\1 {ports[name]}", rules)
        (folder / "haproxy.cfg").write_text(made.replaced(rules))
        process = made.run("haproxy", f"haproxy -W -db -f {folder}/haproxy.cfg")
        running.append(process)
        made.wait("haproxy", process, f"https://{places['10.0.0.10:443']}/health/ready")
        yield made
    finally:
        for process in reversed(running):
            stop(process)


def key_of(site: Site) -> str:
    """The API key that the first server's command has printed."""
    (found,) = re.findall(r"\bmgk_[\w-]+", site.log("mx1"))
    return str(found)


async def test_two_servers_behind_the_balancer_are_one_platform(site: Site) -> None:
    """An account made through the balancer gets mail by LMTP, and each server serves all of it."""
    base = f"https://{site.places['10.0.0.10:443']}"
    headers = {"Authorization": f"Bearer {key_of(site)}"}
    servers = [f"http://{site.places[f'10.0.0.{n}:8025']}" for n in (11, 12)]
    async with httpx.AsyncClient(verify=False, headers=headers, timeout=60) as http:  # noqa: S501
        new = {"username": "ada", "address": "ada@example.org", "password": "correct horse battery"}
        await _mutate(http, base, "domainCreate", {"name": "example.org"}, "domain { id }")
        made = await _mutate(http, base, "userCreate", new, "user { id }")
        large = "".join(f"line {n:060}\r\n" for n in range(20_000))  # its body is in the bucket
        balancer, _, port = site.places["10.0.0.10:8024"].partition(":")
        assert balancer == "127.0.0.1"
        neighbours = [await connect_lmtp(int(port)) for _ in range(2)]
        for n, neighbour in enumerate(neighbours):  # the balancer gives one session to each server
            await neighbour.begin("ada@example.org")
            neighbour.send(raw_message(f"Number {n}", body=large) + b"\r\n.\r\n")
            assert (await neighbour.hear()).startswith("250")
            await neighbour.close()
        signed_in = await _mutate(
            http,
            base,
            "authenticate",
            {"username": "ada", "password": new["password"], "token": True},
            "token",
        )
        own = {"Authorization": f"Bearer {signed_in['token']}"}
        asked = "{ viewer { user { id messages(first: 5) { nodes { subject size } } } } }"
        answers = []
        for server in servers:
            found = await http.post(f"{server}/graphql", json={"query": asked}, headers=own)
            answers.append(found.json()["data"]["viewer"]["user"])
        assert answers[0] == answers[1]
        assert answers[0]["id"] == made["user"]["id"]
        subjects = sorted(each["subject"] for each in answers[0]["messages"]["nodes"])
        assert subjects == ["Number 0", "Number 1"]
        await _hears_of_mail(site, signed_in["token"])


async def test_an_upload_needs_no_stickiness(site: Site) -> None:
    """Each request of an upload reaches another server, or the one that the balancer chooses."""
    base = f"https://{site.places['10.0.0.10:443']}"
    first, second = (f"http://{site.places[f'10.0.0.{n}:8025']}" for n in (11, 12))
    headers = {"Authorization": f"Bearer {key_of(site)}"}
    async with httpx.AsyncClient(verify=False, headers=headers, timeout=60) as http:  # noqa: S501
        new = {"username": "bea", "address": "bea@example.net", "password": "correct horse battery"}
        await _mutate(http, base, "domainCreate", {"name": "example.net"}, "domain { id }")
        await _mutate(http, base, "userCreate", new, "user { id }")
        given = {"username": "bea", "password": new["password"], "token": True}
        token = (await _mutate(http, base, "authenticate", given, "token"))["token"]
        http.headers.update({"Authorization": f"Bearer {token}", "Tus-Resumable": "1.0.0"})
        content = raw_message("Uploaded", body="".join(f"line {n:060}\r\n" for n in range(100_000)))
        announced = {"Upload-Length": str(len(content))}
        created = await http.post(f"{first}/rest/uploads", headers=announced)
        path = f"/rest/uploads/{created.json()['id']}"
        step = len(content) // 5 + 1
        for at, server in zip(
            range(0, len(content), step), (second, first, base, second, base), strict=True
        ):
            for other in (first, second):
                told = await http.head(f"{other}{path}")
                assert (told.status_code, told.headers.get("upload-offset")) == (200, str(at))
            piece = {"Upload-Offset": str(at), "Content-Type": "application/offset+octet-stream"}
            part = content[at : at + step]
            added = await http.patch(f"{server}{path}", content=part, headers=piece)
            assert added.status_code == 204, added.text
        stored = {"mailbox": {"path": "INBOX"}, "rawUpload": path.rsplit("/", 1)[-1]}
        made = await _mutate(http, second, "messageUpload", stored, "message { subject size }")
        assert made["message"] == {"subject": "Uploaded", "size": len(content)}


async def _mutate(
    http: httpx.AsyncClient, base: str, name: str, given: dict[str, Any], payload: str
) -> dict[str, Any]:
    kind = f"{name[0].upper()}{name[1:]}Input"
    document = (
        f"mutation ($input: {kind}!) {{ it: {name}(input: $input) "
        f"{{ {payload} errors {{ code message }} }} }}"
    )
    sent = {"query": document, "variables": {"input": given}}
    answer = (await http.post(f"{base}/graphql", json=sent)).json()
    assert "errors" not in answer, answer
    found: dict[str, Any] = answer["data"]["it"]
    assert found["errors"] == []
    return found


async def _hears_of_mail(site: Site, token: str) -> None:
    """A socket through the balancer hears of mail that the other server has received."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    url = f"wss://{site.places['10.0.0.10:443']}/graphql"
    protocols = [Subprotocol("graphql-transport-ws")]
    async with connect_socket(url, subprotocols=protocols, ssl=context) as socket:
        payload: dict[str, str] = {"Authorization": f"Bearer {token}"}
        await socket.send(json.dumps({"type": "connection_init", "payload": payload}))
        assert json.loads(await socket.recv())["type"] == "connection_ack"
        query = "subscription { changes { events { kind } } }"
        begun = {"id": "1", "type": "subscribe", "payload": {"query": query}}
        await socket.send(json.dumps(begun))
        for n in (11, 12):
            await asyncio.sleep(1)  # the subscription has begun
            neighbour = await connect_lmtp(int(site.places[f"10.0.0.{n}:8024"].partition(":")[2]))
            await neighbour.begin("ada@example.org")
            neighbour.send(raw_message(f"Live {n}") + b"\r\n.\r\n")
            assert (await neighbour.hear()).startswith("250")
            await neighbour.close()
            async with asyncio.timeout(60):
                while True:
                    frame = json.loads(await socket.recv())
                    assert frame["type"] == "next", frame
                    events = frame["payload"]["data"]["changes"]["events"]
                    if any(each["kind"] == "MESSAGE_ADDED" for each in events):
                        break
