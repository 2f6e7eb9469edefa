"""Tests that commands and configuration of docs/operating/several-servers.md run as printed.

Only addresses, paths and passwords of the page are replaced. `scp` becomes `cp`, because both
servers run on this machine.
"""

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
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
from tests.support.clients.change_socket import subscribe_to_later_changes
from tests.support.mail_servers.lmtp_client import connect_lmtp
from tests.support.operations.platform.certificate_operations import CertificateSigner
from tests.support.run_scope import CI
from tests.support.servers.forked_process import ForkedProcess, ProcessStreams
from tests.support.servers.forked_program import forked_program
from tests.support.servers.merganser_server import ROOT
from tests.support.servers.program_process import running_program
from tests.support.stores import store_fixtures
from tests.support.time_limits import HANG_SECONDS

PAGE = ROOT / "docs/operating/several-servers.md"
START_LIMIT = 300.0  # seconds for a server or the balancer to be ready, on a busy machine
STOP_LIMIT = 60.0
PUBLIC_NAME = "mail.example.org"
SERVER_NAMES = ("mx1", "mx2")


def page_block(kind: str) -> str:
    """Return the only block of this kind on the page."""
    (block,) = re.findall(
        rf"^```(?:sh )?{kind}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    return str(block)


@dataclass
class GuideSite:
    """The machines of the page, all of them on this machine."""

    folder: Path
    program_folder: Path  # has `merganser`
    replacements: dict[str, str]  # texts of the page, with their values in this test

    def substitute(self, text: str, name: str = "") -> str:
        """Return the text with the addresses, paths and passwords of this test."""
        text = re.sub(r"scp -p (\w+)\.example\.org:/var/lib/merganser", self._local_copy, text)
        text = text.replace("/var/lib/merganser", str(self.folder / name))
        for printed_text, value in self.replacements.items():
            text = text.replace(printed_text, value)
        return text

    def _local_copy(self, match: re.Match[str]) -> str:
        return f"cp -p {self.folder / match[1]}"

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def run_server(self, name: str, script: str) -> ForkedProcess:
        """Run a script of the page, whose last command starts the server.

        All its commands run in forks: a program that imports Merganser takes seconds of CPU time.
        """
        *commands, last_command = self.substitute(script, name).rstrip().splitlines()
        program, *arguments = shlex.split(last_command)
        assert program == "merganser"
        env_file, log_file = self.folder / f"{name}.env", self.folder / f"{name}.log"
        lines = ["set -e", "umask 077", *commands, f"env -0 > {env_file}", ""]
        env = {
            "PATH": f"{self.program_folder}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "something",
            "MERGANSER_ARGON2_MEMORY_COST": "8",
            "MERGANSER_ARGON2_TIME_COST": "1",
        }
        with log_file.open("ab") as log:
            shell = subprocess.run(
                ["/bin/bash", "-c", "\n".join(lines)],
                check=False,
                env=env,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        assert shell.returncode == 0, self.log(name)
        variables = [line.split("=", 1) for line in env_file.read_text().split("\0") if line]
        return ForkedProcess(arguments, dict(variables), ProcessStreams(log_file))

    def wait(self, name: str, url: str, process: ForkedProcess | None = None) -> None:
        """Wait until the URL returns status 200. The process, if given, must run."""
        deadline = time.monotonic() + START_LIMIT
        with httpx.Client(verify=False, timeout=HANG_SECONDS) as http:  # noqa: S501 - own CA
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if http.get(url).is_success:
                        return
                assert process is None or process.poll() is None, self.log(name)
                assert time.monotonic() < deadline, self.log(name)
                time.sleep(0.1)


def stop_process(process: ForkedProcess) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_LIMIT)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, postgres: str, request: pytest.FixtureRequest
) -> Iterator[GuideSite]:
    """Both servers and the balancer, started in the order of the page."""
    if not CI and shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed")
    bucket = request.getfixturevalue("s3_server")
    httpx.put(f"{bucket}/mail").raise_for_status()
    store = store_fixtures.run_in_new_loop(
        store_fixtures.create_database_beside(postgres, "several")
    ).replace("+asyncpg", "")
    folder = tmp_path_factory.mktemp("several")
    certificate, private_key = CertificateSigner().issue_certificate(
        [PUBLIC_NAME], begin=datetime.now(UTC) - timedelta(days=1)
    )
    (folder / "public.pem").write_text(certificate + private_key)
    replacements = {
        "postgresql://merganser:password@db.example.org/merganser": f"'{store}'",
        "https://s3.example.org": bucket,
        "/etc/ssl/mail.example.org.pem": str(folder / "public.pem"),
        "10.0.0.10:443": f"127.0.0.1:{free_port()}",
        "10.0.0.10:8024": f"127.0.0.1:{free_port()}",
    }
    ports = dict[str, int]()
    for number, name in enumerate(SERVER_NAMES, 11):
        http = free_port()
        replacements[f"10.0.0.{number}:8025"] = f"127.0.0.1:{http}"
        replacements[f"10.0.0.{number}:8024"] = f"127.0.0.1:{free_port()}"
        ports[name] = http
    replacements["10.0.0.10"] = "127.0.0.1"
    program_folder = tmp_path_factory.mktemp("programs")
    guide_site = GuideSite(folder, program_folder, replacements)
    with contextlib.ExitStack() as stack:
        stack.enter_context(forked_program(program_folder / "merganser"))
        for name, block in zip(SERVER_NAMES, ("first-server", "second-server"), strict=True):
            process = guide_site.run_server(name, page_block(block))
            stack.callback(stop_process, process)
            guide_site.wait(name, f"http://127.0.0.1:{ports[name]}/health/ready", process)
        haproxy_config = page_block("haproxy")
        for name in SERVER_NAMES:
            haproxy_config = re.sub(
                rf"(server {name} .*check port) 8025", rf"\1 {ports[name]}", haproxy_config
            )
        (folder / "haproxy.cfg").write_text(guide_site.substitute(haproxy_config))
        address = replacements["10.0.0.10:443"]
        command = ["haproxy", "-W", "-db", "-f", f"{folder}/haproxy.cfg"]
        port = int(address.partition(":")[2])
        stack.enter_context(running_program(command, port, folder / "haproxy.log"))
        guide_site.wait("haproxy", f"https://{address}/health/ready")
        yield guide_site


def printed_api_key(site: GuideSite) -> str:
    """Return the API key that the command of the first server has printed."""
    (api_key,) = re.findall(r"\bmgk_[\w-]+", site.log("mx1"))
    return str(api_key)


async def test_two_servers_behind_balancer_serve_the_same_account(site: GuideSite) -> None:
    """A user that is created through the balancer gets mail by LMTP and reads it on each server."""
    base = f"https://{site.replacements['10.0.0.10:443']}"
    headers = {"Authorization": f"Bearer {printed_api_key(site)}"}
    servers = [f"http://{site.replacements[f'10.0.0.{number}:8025']}" for number in (11, 12)]
    async with httpx.AsyncClient(verify=False, headers=headers, timeout=HANG_SECONDS) as http:  # noqa: S501
        user_input = {
            "username": "ada",
            "address": "ada@example.org",
            "password": "correct horse battery",
        }
        await _mutate(http, base, "domainCreate", {"name": "example.org"}, "domain { id }")
        created = await _mutate(http, base, "userCreate", user_input, "user { id }")
        # the body is stored in the bucket
        large = "".join(f"line {number:060}\r\n" for number in range(20_000))
        balancer, _, port = site.replacements["10.0.0.10:8024"].partition(":")
        assert balancer == "127.0.0.1"
        lmtp_clients = [await connect_lmtp(int(port)) for _ in range(2)]
        # the balancer assigns one session to each server
        for number, lmtp_client in enumerate(lmtp_clients):
            await lmtp_client.start_data("ada@example.org")
            lmtp_client.send_bytes(raw_message(f"Number {number}", body=large) + b"\r\n.\r\n")
            assert (await lmtp_client.read_reply()).startswith("250")
            await lmtp_client.close()
        signed_in = await _mutate(
            http,
            base,
            "authenticate",
            {"username": "ada", "password": user_input["password"]},
            "token",
        )
        auth_header = {"Authorization": f"Bearer {signed_in['token']}"}
        query = "{ viewer { user { id messages(first: 5) { nodes { subject size } } } } }"
        users = []
        for server in servers:
            response = await http.post(
                f"{server}/graphql", json={"query": query}, headers=auth_header
            )
            users.append(response.json()["data"]["viewer"]["user"])
        assert users[0] == users[1]
        assert users[0]["id"] == created["user"]["id"]
        subjects = sorted(message["subject"] for message in users[0]["messages"]["nodes"])
        assert subjects == ["Number 0", "Number 1"]
        await _assert_subscriber_sees_mail_of_each_server(site, signed_in["token"])


async def test_upload_continues_on_any_server(site: GuideSite) -> None:
    """Each request of an upload goes to another server, or to one that the balancer selects."""
    base = f"https://{site.replacements['10.0.0.10:443']}"
    first, second = (f"http://{site.replacements[f'10.0.0.{number}:8025']}" for number in (11, 12))
    headers = {"Authorization": f"Bearer {printed_api_key(site)}"}
    async with httpx.AsyncClient(verify=False, headers=headers, timeout=HANG_SECONDS) as http:  # noqa: S501
        user_input = {
            "username": "bea",
            "address": "bea@example.net",
            "password": "correct horse battery",
        }
        await _mutate(http, base, "domainCreate", {"name": "example.net"}, "domain { id }")
        await _mutate(http, base, "userCreate", user_input, "user { id }")
        sign_in_input = {"username": "bea", "password": user_input["password"]}
        token = (await _mutate(http, base, "authenticate", sign_in_input, "token"))["token"]
        http.headers.update({"Authorization": f"Bearer {token}", "Tus-Resumable": "1.0.0"})
        content = raw_message(
            "Uploaded", body="".join(f"line {number:060}\r\n" for number in range(10_000))
        )
        length_header = {"Upload-Length": str(len(content))}
        created = await http.post(f"{first}/rest/uploads", headers=length_header)
        path = f"/rest/uploads/{created.json()['id']}"
        step = len(content) // 5 + 1
        for offset, server in zip(
            range(0, len(content), step), (second, first, base, second, base), strict=True
        ):
            for other_server in (first, second):
                status_response = await http.head(f"{other_server}{path}")
                assert (
                    status_response.status_code,
                    status_response.headers.get("upload-offset"),
                ) == (200, str(offset))
            part_headers = {
                "Upload-Offset": str(offset),
                "Content-Type": "application/offset+octet-stream",
            }
            part = content[offset : offset + step]
            patch_response = await http.patch(f"{server}{path}", content=part, headers=part_headers)
            assert patch_response.status_code == 204, patch_response.text
        upload_input = {"mailbox": {"path": "INBOX"}, "rawUpload": path.rsplit("/", 1)[-1]}
        uploaded = await _mutate(
            http, second, "messageImport", upload_input, "messages { subject size }"
        )
        assert uploaded["messages"] == [{"subject": "Uploaded", "size": len(content)}]


async def _mutate(
    http: httpx.AsyncClient, base: str, name: str, mutation_input: dict[str, Any], payload: str
) -> dict[str, Any]:
    input_type = f"{name[0].upper()}{name[1:]}Input"
    document = (
        f"mutation ($input: {input_type}!) {{ it: {name}(input: $input) "
        f"{{ {payload} errors {{ code message }} }} }}"
    )
    body = {"query": document, "variables": {"input": mutation_input}}
    result = (await http.post(f"{base}/graphql", json=body)).json()
    assert "errors" not in result, result
    result_payload: dict[str, Any] = result["data"]["it"]
    assert result_payload["errors"] == []
    return result_payload


async def _assert_subscriber_sees_mail_of_each_server(site: GuideSite, token: str) -> None:
    """Subscribe through the balancer and wait for a message that each server receives."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    url = f"wss://{site.replacements['10.0.0.10:443']}/graphql"
    protocols = [Subprotocol("graphql-transport-ws")]
    async with connect_socket(url, subprotocols=protocols, ssl=context) as socket:
        payload: dict[str, str] = {"Authorization": f"Bearer {token}"}
        await socket.send(json.dumps({"type": "connection_init", "payload": payload}))
        assert json.loads(await socket.recv())["type"] == "connection_ack"
        await subscribe_to_later_changes(socket)
        for number in (11, 12):
            lmtp_client = await connect_lmtp(
                int(site.replacements[f"10.0.0.{number}:8024"].partition(":")[2])
            )
            await lmtp_client.start_data("ada@example.org")
            lmtp_client.send_bytes(raw_message(f"Live {number}") + b"\r\n.\r\n")
            assert (await lmtp_client.read_reply()).startswith("250")
            await lmtp_client.close()
            async with asyncio.timeout(HANG_SECONDS):
                while True:
                    frame = json.loads(await socket.recv())
                    assert frame["type"] == "next", frame
                    events = frame["payload"]["data"]["changes"]["events"]
                    if any(event["type"] == "MESSAGE_RECEIVED" for event in events):
                        break
