"""A demo server sends nothing to other machines, whatever its settings say."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.servers.ports import free_port
from merganser.demo.credentials import read_account_or_none
from tests.support.servers.merganser_server import HttpClient, MerganserProcess
from tests.support.time_limits import HANG_SECONDS

SINK_TEXT = "2.0.0 Stored in the local sink of this demo server, not sent"
SUBMISSIONS = """{ viewer { user { submissions(first: 1) { nodes {
    state recipients { recipient state lastResponse mx } } } } } }"""
DOMAIN = "no-mail-leaves.example"


@pytest.fixture
def name_server() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The UDP and TCP sockets of a port that nothing may reach."""
    port = free_port()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
    ):
        for endpoint in (udp, tcp):
            endpoint.bind(("127.0.0.1", port))
            endpoint.setblocking(False)
        tcp.listen()
        yield udp, tcp


def assert_nothing_arrived(udp: socket.socket, tcp: socket.socket) -> None:
    with pytest.raises(BlockingIOError):
        udp.recv(1)
    with pytest.raises(BlockingIOError):
        tcp.accept()


@pytest.fixture
def demo_server(
    tmp_path: Path, name_server: tuple[socket.socket, socket.socket]
) -> Iterator[MerganserProcess]:
    address = f"127.0.0.1:{name_server[0].getsockname()[1]}"
    settings = {
        "DNS_RESOLVER": address,
        "NEXT_HOP": f"smtp://{address}",
        "BREACHED_PASSWORDS_URL": f"http://{address}/range",
        "WEBHOOKS_ALLOW_PRIVATE_NETWORKS": "on",
        "FORWARDS_ALLOW_PRIVATE_NETWORKS": "on",
    }
    server = MerganserProcess(
        tmp_path, extra_settings=settings, serve_arguments=("--demo", "--demo-count", "5")
    )
    server.start()
    for username in ("demo", "demo-admin"):
        account = read_account_or_none(tmp_path / "var", username)
        assert account
        assert account.key
        server.secrets[username] = account.key
    yield server
    server.stop()


async def wait_for_submission(demo: HttpClient) -> Any:
    async with asyncio.timeout(HANG_SECONDS):
        while True:
            data = await demo(SUBMISSIONS)
            (submission,) = data["viewer"]["user"]["submissions"]["nodes"]
            if submission["state"] not in {"QUEUED", "SENDING"}:
                return submission
            await asyncio.sleep(0.02)


async def test_outgoing_mail_of_demo_ends_in_local_sink(
    demo_server: MerganserProcess, name_server: tuple[socket.socket, socket.socket]
) -> None:
    recipients = [f"anna@{DOMAIN}", f"bert@{DOMAIN}"]
    async with demo_server.open_client("demo") as demo:
        to = [{"address": address} for address in recipients]
        await demo.run_mutation("messageSend", {"to": to, "subject": "Boat", "text": "Leave?"})
        submission = await wait_for_submission(demo)
    assert {row["recipient"]: row["state"] for row in submission["recipients"]} == dict.fromkeys(
        recipients, "RELAYED"
    )
    assert {(row["mx"], row["lastResponse"]) for row in submission["recipients"]} == {
        ("local sink", f"250 {SINK_TEXT}")
    }
    sink = demo_server.folder / "var" / "outgoing-mail"
    assert f"{sink}/" in demo_server.log
    assert "Nothing is sent to other servers" in demo_server.log
    (file,) = sink.iterdir()
    content = file.read_text()
    assert content.startswith("X-Envelope-From: <demo@merganser.example>\n")
    assert all(f"<{address}>" in content.splitlines()[1] for address in recipients)
    assert "Subject: Boat\n" in content
    assert file.stat().st_mode & 0o077 == 0
    assert_nothing_arrived(*name_server)


async def test_requests_of_administrators_send_no_dns_query(
    demo_server: MerganserProcess, name_server: tuple[socket.socket, socket.socket]
) -> None:
    async with demo_server.open_client("demo-admin") as admin:
        route = await admin.run_mutation(
            "routeTest",
            {"sender": "demo@merganser.example", "recipient": f"anna@{DOMAIN}"},
            "ok log",
        )
        assert route["ok"]
        assert "sends nothing" in route["log"][-1]
        records = await admin.raw(
            '{ domain(by: {name: "merganser.example"}) { dnsRecords(check: true) { state } } }'
        )
        assert records["data"]["domain"]["dnsRecords"]
    raw = (
        b"From: carol@%b\r\nTo: demo@merganser.example\r\nSubject: Hello\r\n"
        b"DKIM-Signature: v=1; a=rsa-sha256; d=%b; s=x; h=from; bh=eA==; b=eA==\r\n\r\nHi\r\n"
    ) % (DOMAIN.encode(), DOMAIN.encode())
    reply = await demo_server.deliver_by_lmtp(raw, "demo@merganser.example")
    assert reply.startswith("250 ")
    assert_nothing_arrived(*name_server)


async def test_pages_of_this_machine_can_call_the_demo(demo_server: MerganserProcess) -> None:
    async with demo_server.open_client() as client:
        for origin, status in (
            ("http://localhost:5173", 200),
            ("http://127.0.0.1:3000", 200),
            ("https://evil.example", 403),
        ):
            headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            preflight = await client.http.options("/graphql", headers=headers)
            assert preflight.status_code == status
            assert ("MERGANSER_CORS_ORIGINS" in preflight.text) == (status == 403)
