"""Caddy, HAProxy and nginx with the files in `deploy/`, in front of a server.

Only addresses, ports and paths of the files are replaced.
"""

import asyncio
import contextlib
import os
import re
import secrets
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from bench.servers.ports import free_port
from models.runtime.options import Options
from tests.conftest import raw_message
from tests.support.clients.plain_http import plain_client
from tests.support.operations.platform.ban_operations import BAN_ADD
from tests.support.operations.platform.certificate_operations import CertificateSigner
from tests.support.servers.merganser_server import (
    ROOT,
    HttpClient,
    MerganserProcess,
    WebsocketClient,
)
from tests.support.servers.observed_server import wait_until
from tests.support.servers.program_process import (
    BUSY_MACHINE_SECONDS,
    require_program,
    running_program,
)
from tests.support.time_limits import HANG_SECONDS

DEPLOY = ROOT / "deploy"
NAME = "mail.example.org"
CLIENT_ADDRESS = "127.0.0.9"  # a loopback address that is no trusted proxy
FORGED_ADDRESS = "203.0.113.66"
UPSTREAM = "127.0.0.1:8025"
HSTS = "max-age=31536000"
EVENTS = "subscription ($after: Cursor) { changes(after: $after) { events { type } } }"
SESSIONS = """query ($service: SessionService!) {
  sessions(filter: {services: [$service]}, first: 5) { nodes { ip proxied } } }"""
LIMITS = {"/rest/uploads": Options().upload_max_size, "/graphql": Options().message_max_size}
CHALLENGE_PATH = "/.well-known/acme-challenge/unknown"
HAPROXY_USER = "    user haproxy\n    group haproxy\n"
CADDY_OPTIONS = """\
{{
    admin off
    local_certs
    skip_install_trust
    http_port {http_port}
    https_port {https_port}
}}
"""


@dataclass
class ProxiedServer:
    """A server behind a proxy with TLS."""

    server: MerganserProcess
    http_port: int
    https_port: int

    @contextlib.asynccontextmanager
    async def open_client(self) -> AsyncIterator[HttpClient]:
        """Yield a client of the proxy, with the API key of the user `ada`."""

        async def set_server_name(request: httpx.Request) -> None:
            request.extensions["sni_hostname"] = NAME

        headers = {"Host": NAME, "Authorization": f"Bearer {self.server.secrets['ada']}"}
        async with httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{self.https_port}",
            headers=headers,
            transport=httpx.AsyncHTTPTransport(verify=False, local_address=CLIENT_ADDRESS),
            event_hooks={"request": [set_server_name]},
            timeout=HANG_SECONDS,
        ) as http:
            yield HttpClient(http)

    @contextlib.asynccontextmanager
    async def open_websocket(self) -> AsyncIterator[WebsocketClient]:
        """Yield a WebSocket of the user `ada` through the proxy."""
        async with connect(
            f"wss://{NAME}/graphql",
            host="127.0.0.1",
            port=self.https_port,
            local_addr=(CLIENT_ADDRESS, 0),
            ssl=unverified_context(),
            proxy=None,
            subprotocols=[Subprotocol("graphql-transport-ws")],
            additional_headers={"X-Forwarded-For": FORGED_ADDRESS},
        ) as connection:
            websocket = WebsocketClient(connection)
            payload = {"Authorization": f"Bearer {self.server.secrets['ada']}"}
            await websocket.send_frame({"type": "connection_init", "payload": payload})
            assert (await websocket.read_frame())["type"] == "connection_ack"
            yield websocket

    async def status_of_body(self, path: str, size: int) -> int:
        """Send a request with a body of this size, if the proxy asks for it. Return the status."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.https_port, ssl=unverified_context(), server_hostname=NAME
        )
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {size}\r\n"
            f"Authorization: Bearer {self.server.secrets['ada']}\r\n"
            "Content-Type: application/json\r\nExpect: 100-continue\r\n\r\n"
        )
        writer.write(head.encode())
        async with asyncio.timeout(HANG_SECONDS):
            status = await read_status(reader)
            if status == 100:
                # not in chunks: a write to a connection that was closed would discard the response
                writer.write(bytes(size))
                status = await read_status(reader)
        writer.transport.abort()
        return status


async def read_status(reader: asyncio.StreamReader) -> int:
    """Read the head of a response."""
    head = await reader.readuntil(b"\r\n\r\n")
    return int(head.split()[1])


def unique_message() -> bytes:
    """A message that is not a duplicate of another one."""
    return raw_message(f"Report {secrets.token_hex(8)}")


def unverified_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@pytest.fixture(scope="module")
def upstream_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MerganserProcess]:
    process = MerganserProcess(tmp_path_factory.mktemp("proxied"))
    process.create_users("ada")
    process.start()
    yield process
    process.stop()


def replace_all(text: str, replacements: dict[str, str]) -> str:
    """Replace each text, which must occur."""
    for printed_text, value in replacements.items():
        assert printed_text in text, printed_text
        text = text.replace(printed_text, value)
    return text


def run_caddy(proxied: ProxiedServer, folder: Path) -> AbstractContextManager[None]:
    options = CADDY_OPTIONS.format(http_port=proxied.http_port, https_port=proxied.https_port)
    path = folder / "Caddyfile"
    path.write_text(options + (DEPLOY / "caddy/Caddyfile").read_text())
    env = {
        "SITE_HOST": NAME,
        "SITE_UPSTREAM": f"127.0.0.1:{proxied.server.http_port}",
        "HOME": str(folder),
        "XDG_DATA_HOME": str(folder / "data"),
        "XDG_CONFIG_HOME": str(folder / "config"),
    }
    command = ["caddy", "run", "--adapter", "caddyfile", "--config", str(path)]
    return running_program(command, proxied.https_port, folder / "log", env)


def write_certificate(folder: Path) -> None:
    certificate, key = CertificateSigner().issue_certificate(
        [NAME], begin=datetime.now(UTC) - timedelta(days=1)
    )
    (folder / f"{NAME}.pem").write_text(certificate + key)
    (folder / f"{NAME}.key").write_text(key)


def run_haproxy(proxied: ProxiedServer, folder: Path) -> AbstractContextManager[None]:
    write_certificate(folder)
    replacements = {
        # only root can change its user
        HAPROXY_USER: "" if os.geteuid() else HAPROXY_USER,
        UPSTREAM: f"127.0.0.1:{proxied.server.http_port}",
        "bind :80\n": f"bind 127.0.0.1:{proxied.http_port}\n",
        "bind :443 ": f"bind 127.0.0.1:{proxied.https_port} ",
        "/etc/ssl": str(folder),
    }
    path = folder / "haproxy.cfg"
    path.write_text(replace_all((DEPLOY / "haproxy/haproxy.cfg").read_text(), replacements))
    command = ["haproxy", "-db", "-f", str(path)]
    return running_program(command, proxied.https_port, folder / "log")


def run_nginx(proxied: ProxiedServer, folder: Path) -> AbstractContextManager[None]:
    write_certificate(folder)
    replacements = {
        UPSTREAM: f"127.0.0.1:{proxied.server.http_port}",
        "listen 80;\n    listen [::]:80;": f"listen 127.0.0.1:{proxied.http_port};",
        "listen 443 ssl http2;\n    listen [::]:443 ssl http2;": (
            f"listen 127.0.0.1:{proxied.https_port} ssl http2;"
        ),
        "/etc/ssl": str(folder),
    }
    site = replace_all((DEPLOY / "nginx/merganser.conf").read_text(), replacements)
    temporary_paths = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = folder / "nginx.conf"
    path.write_text(
        f"daemon off;\npid {folder}/nginx.pid;\nerror_log stderr info;\nevents {{ }}\n"
        f"http {{\naccess_log off;\n{temporary_paths}{site}}}\n"
    )
    command = ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(path)]
    return running_program(command, proxied.https_port, folder / "log")


PROXIES = {"caddy": run_caddy, "haproxy": run_haproxy, "nginx": run_nginx}


@pytest.fixture(scope="module", params=sorted(PROXIES))
def proxied(
    request: pytest.FixtureRequest,
    upstream_server: MerganserProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ProxiedServer]:
    require_program(request.param)
    behind_proxy = ProxiedServer(upstream_server, free_port(), free_port())
    with PROXIES[request.param](behind_proxy, tmp_path_factory.mktemp(request.param)):
        wait_until(lambda: passes_requests_on(behind_proxy), BUSY_MACHINE_SECONDS)
        yield behind_proxy


def passes_requests_on(proxied: ProxiedServer) -> bool:
    """True if the proxy answers. Caddy first creates its certificate."""
    with (
        contextlib.suppress(httpx.TransportError),
        httpx.Client(verify=False, timeout=HANG_SECONDS) as http,  # noqa: S501
    ):
        response = http.get(
            f"https://127.0.0.1:{proxied.https_port}/health/ready",
            headers={"Host": NAME},
            extensions={"sni_hostname": NAME},
        )
        return response.is_success
    return False


async def test_websocket_passes_with_the_address_of_the_client(proxied: ProxiedServer) -> None:
    async with proxied.open_client() as client:
        cursor = await client.load_cursor()
    async with proxied.open_websocket() as websocket:
        await websocket.subscribe(EVENTS, after=cursor)
        await proxied.server.deliver_by_lmtp(unique_message(), "ada@example.org")
        events = (await websocket.read_changes())["events"]
        assert "MESSAGE_RECEIVED" in {event["type"] for event in events}
        async with proxied.server.open_client("root") as client:
            nodes = (await client(SESSIONS, service="WEBSOCKET"))["sessions"]["nodes"]
        assert nodes
        assert all(node == {"ip": CLIENT_ADDRESS, "proxied": True} for node in nodes)


async def test_event_stream_is_not_buffered(proxied: ProxiedServer) -> None:
    async with proxied.open_client() as client:
        cursor = await client.load_cursor()
        async with client.subscribe_by_sse(EVENTS, after=cursor) as stream:
            for _ in range(3):
                raw = unique_message()
                await proxied.server.deliver_by_lmtp(raw, "ada@example.org")
                while True:
                    event = await stream.read_event()
                    events = event["data"]["changes"]["events"]
                    if "MESSAGE_RECEIVED" in {change["type"] for change in events}:
                        break


async def test_event_stream_ends_with_its_client(proxied: ProxiedServer) -> None:
    async with proxied.server.open_client("root") as root:

        async def open_streams() -> list[Any]:
            page = await root(SESSIONS, service="EVENT_STREAM")
            return list(page["sessions"]["nodes"])

        async with (
            asyncio.timeout(HANG_SECONDS),
            proxied.open_client() as client,
            client.subscribe_by_sse(EVENTS),
        ):
            while not await open_streams():  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)
        async with asyncio.timeout(HANG_SECONDS):
            while await open_streams():  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)


async def test_upload_up_to_the_limit_passes(proxied: ProxiedServer) -> None:
    content = bytes(Options().upload_max_size)
    async with proxied.open_client() as client:
        headers = {"Content-Type": "application/octet-stream"}
        response = await client.http.post("/rest/uploads", content=content, headers=headers)
    assert response.is_success, response.text
    assert response.json()["size"] == len(content)


@pytest.mark.parametrize("path", sorted(LIMITS))
async def test_larger_body_is_refused(proxied: ProxiedServer, path: str) -> None:
    assert await proxied.status_of_body(path, LIMITS[path] + 1) == 413


async def test_every_response_has_hsts(proxied: ProxiedServer) -> None:
    async with proxied.open_client() as client:
        for path in ("/health", "/graphql", "/missing"):
            response = await client.http.get(path)
            assert response.headers.get_list("Strict-Transport-Security") == [HSTS], path


async def test_http_redirects_to_https_except_challenges(proxied: ProxiedServer) -> None:
    # The proxy has the certificate of NAME, and Merganser that of its own name.
    async with plain_client(headers={"Host": "mx.example.org"}, timeout=HANG_SECONDS) as http:
        base = f"http://127.0.0.1:{proxied.http_port}"
        page = await http.get(f"{base}/docs/")
        challenge = await http.get(f"{base}{CHALLENGE_PATH}")
        direct = await http.get(f"{proxied.server.url}{CHALLENGE_PATH}")
    assert page.status_code in {301, 302}
    assert page.headers["location"] == f"https://{NAME}/docs/"
    assert (challenge.status_code, challenge.text) == (direct.status_code, direct.text)


async def ban_forged_address(root: HttpClient) -> None:
    """Ban the address, and wait until the server refuses it."""
    payload = (await root(BAN_ADD, input={"networks": [FORGED_ADDRESS]}))["banAdd"]
    assert payload["errors"] == []
    headers = {"X-Forwarded-For": FORGED_ADDRESS}
    async with asyncio.timeout(HANG_SECONDS):
        while (await root.http.get("/health", headers=headers)).status_code != 403:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)


async def test_clients_do_not_choose_their_address(proxied: ProxiedServer) -> None:
    """Requests with the address of a banned network are answered like others."""
    forged = {"X-Forwarded-For": FORGED_ADDRESS, "Host": "mx.example.org"}
    async with proxied.server.open_client("root") as root, proxied.open_client() as client:
        await ban_forged_address(root)
        response = await client.http.get("/health", headers=forged | {"Host": NAME})
        assert response.is_success
        async with plain_client(headers=forged, timeout=HANG_SECONDS) as http:
            challenge = await http.get(f"http://127.0.0.1:{proxied.http_port}{CHALLENGE_PATH}")
        assert challenge.status_code == 404


def test_limits_of_the_files_are_the_defaults_of_the_settings() -> None:
    upload, message = Options().upload_max_size, Options().message_max_size
    caddy = (DEPLOY / "caddy/Caddyfile").read_text()
    assert re.findall(r"max_size (\w+)", caddy) == [f"{upload >> 20}MiB", f"{message >> 20}MiB"]
    nginx = (DEPLOY / "nginx/merganser.conf").read_text()
    sizes = re.findall(r"client_max_body_size (\w+);", nginx)
    assert sizes == [f"{message >> 20}m", f"{upload >> 20}m"]
    haproxy = (DEPLOY / "haproxy/haproxy.cfg").read_text()
    assert re.findall(r"body_size gt (\d+)", haproxy) == [str(upload), str(message)]
