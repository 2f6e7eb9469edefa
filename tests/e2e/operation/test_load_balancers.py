"""HAProxy and nginx in front of two servers, as docs/operating/cluster.md describes.

Only addresses, paths and the key of the page are replaced.
"""

import asyncio
import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.cluster_soak import create_data_folder
from bench.servers.ports import free_port
from tests.support.clients.plain_http import plain_blocking_client, plain_client
from tests.support.mail_servers.smtp_client import connect_smtp
from tests.support.servers.merganser_server import ROOT, MerganserProcess
from tests.support.servers.program_process import require_program, running_program
from tests.support.stores.store_fixtures import create_migrated_database
from tests.support.time_limits import HANG_SECONDS

PAGE = ROOT / "docs/operating/cluster.md"
BUSY_MACHINE_SECONDS = 120.0
# So many that the hash gives one node all of them once in half a million runs.
USERS = ("ada", *(f"user{number:02}" for number in range(19)))
MAIL_MODULE = "/usr/lib/nginx/modules/ngx_mail_module.so"
MESSAGE = b"Subject: Report\r\n\r\nHello\r\n.\r\n"


def page_block(kind: str) -> str:
    """Return the only block of this kind on the page."""
    (block,) = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return str(block)


@dataclass
class BalancedServers:
    """Two servers on one database, each with a node."""

    folder: Path
    servers: list[MerganserProcess]

    @property
    def ports(self) -> list[int]:
        """The HTTP ports, which name the nodes."""
        return [server.http_port for server in self.servers]

    def substitute(self, text: str) -> str:
        """Return a configuration of the page with the addresses and paths of this test."""
        replacements = {"/etc/haproxy": str(self.folder), "KEY": self.servers[0].secrets["root"]}
        for number, port in enumerate(self.ports, 1):
            replacements[f"mx{number}.example.org:8025"] = f"127.0.0.1:{port}"
            replacements[f"10.0.0.{10 + number}:8025"] = f"127.0.0.1:{port}"
        for printed_text, value in replacements.items():
            text = text.replace(printed_text, value)
        return text

    async def run_mutation(self, name: str, input_fields: Any, selection: str) -> Any:
        async with self.servers[0].open_client("root") as client:
            return await client.run_mutation(name, input_fields, selection)

    async def set_state(self, port: int, state: str) -> None:
        """Set the state of a node, and wait until its readiness follows."""
        ref = {"address": {"host": "127.0.0.1", "port": port}}
        fields = {"nodes": [ref], "set": {"state": state}}
        await self.run_mutation("clusterNodeUpdate", fields, "clusterNodes { host }")
        await wait_until(lambda: is_ready(port) is (state == "UP"))

    async def port_of_user(self, name: str) -> int:
        """Return the port of the node of a user, by the route."""
        async with self.servers[0].open_client("root") as client:
            response = await client.http.get("/rest/route", params={"user": name})
            return int(response.raise_for_status().json()["port"])

    async def wait_until_users_have_ports(self, expected: set[int]) -> None:
        """Wait until the nodes of all users have exactly these ports."""
        async with asyncio.timeout(BUSY_MACHINE_SECONDS):
            while {await self.port_of_user(name) for name in USERS} != expected:  # noqa: ASYNC110
                await asyncio.sleep(0.5)  # a node fails 5 s after its last heartbeat

    async def load_session_counts(self) -> dict[int, int]:
        """Return the number of sessions of each node by port."""
        async with self.servers[0].open_client("root") as client:
            page = await client("{ clusterNodes { nodes { port sessionCount } } }")
            return {node["port"]: node["sessionCount"] for node in page["clusterNodes"]["nodes"]}


def is_ready(port: int) -> bool:
    with plain_blocking_client(timeout=HANG_SECONDS) as http:
        return http.get(f"http://127.0.0.1:{port}/health/ready").is_success


async def wait_until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(BUSY_MACHINE_SECONDS):
        while not await asyncio.to_thread(is_true):  # noqa: ASYNC110 - other processes
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory, postgres: str) -> Iterator[BalancedServers]:
    folder = tmp_path_factory.mktemp("balanced")
    store = create_migrated_database(postgres, "balanced")
    servers = []
    for name in ("mx1", "mx2"):
        (folder / name).mkdir()
        settings = {
            "SMTP_LISTEN": f"127.0.0.1:{free_port()}",
            "SMTP_TRUSTED_PROXIES": "127.0.0.0/8",
            "AUTHENTICATION_CHECK": "off",
            "OBJECT_STORE_URL": str(folder / "blobs"),
        }
        server = MerganserProcess(
            folder / name, store, settings, serve_arguments=("--workers", "2")
        )
        settings["NODE_ADDRESS"] = f"127.0.0.1:{server.http_port}"
        servers.append(server)
    servers[0].create_users(*USERS)
    servers[1].secrets = servers[0].secrets
    create_data_folder(servers[1].folder / "var", servers[0].folder / "var")
    for server in servers:
        server.start()
    yield BalancedServers(folder, servers)
    for server in servers:
        if server.is_running:
            server.stop()


async def test_haproxy_connects_each_user_to_the_same_node(balanced: BalancedServers) -> None:
    require_program("haproxy")
    port, folder = free_port(), balanced.folder
    written = balanced.servers[0].run_command("cluster", "map", "--output", folder / "users.map")
    assert written.exit_code == 0, written.stderr
    config = balanced.substitute(page_block("haproxy")).replace("10.0.0.10:8080", f"*:{port}")
    (folder / "haproxy.cfg").write_text(config)
    ports = {name: await balanced.port_of_user(name) for name in USERS}
    lines = (folder / "users.map").read_text().splitlines()
    assert lines == [f"{name} 127.0.0.1:{ports[name]}" for name in sorted(USERS)]
    assert set(ports.values()) == set(balanced.ports)
    command = ["haproxy", "-db", "-f", f"{folder}/haproxy.cfg"]
    headers = {"Authorization": f"Bearer {balanced.servers[0].secrets['root']}"}
    with running_program(command, port, folder / "haproxy.log"):
        async with plain_client(
            base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=HANG_SECONDS
        ) as http:

            async def answering_port(user: str) -> int | None:
                body = {"query": "{ clusterNodes { nodes { port local } } }"}
                response = await http.post("/graphql", json=body, headers={"X-User": user})
                if not response.is_success:
                    return None
                nodes = response.json()["data"]["clusterNodes"]["nodes"]
                return next(int(node["port"]) for node in nodes if node["local"])

            for name in USERS:
                assert await answering_port(name.upper()) == ports[name]
            down, other = balanced.ports
            await balanced.set_state(down, "DOWN")
            moved = next(name for name in USERS if ports[name] == down)
            async with asyncio.timeout(BUSY_MACHINE_SECONDS):
                while await answering_port(moved) != other:  # noqa: ASYNC110 - HAProxy probes
                    await asyncio.sleep(0.1)
            await balanced.set_state(down, "UP")
            async with asyncio.timeout(BUSY_MACHINE_SECONDS):
                while await answering_port(moved) != down:  # noqa: ASYNC110 - HAProxy probes
                    await asyncio.sleep(0.1)


async def test_nginx_sends_mail_of_each_user_to_the_same_node(balanced: BalancedServers) -> None:
    require_program("nginx")
    port, folder = free_port(), balanced.folder
    config = balanced.substitute(page_block("nginx")).replace("10.0.0.10:25", f"127.0.0.1:{port}")
    (folder / "nginx.conf").write_text(
        f"load_module {MAIL_MODULE};\ndaemon off;\npid {folder}/nginx.pid;\n"
        f"error_log stderr info;\nevents {{ }}\n{config}"
    )
    command = ["nginx", "-p", str(folder), "-e", "stderr", "-c", f"{folder}/nginx.conf"]
    with running_program(command, port, folder / "nginx.log"):
        for name in USERS[:3]:
            user_port = await balanced.port_of_user(name)
            assert await port_that_receives(balanced, port, name) == user_port
        user_port = await balanced.port_of_user("ada")
        (other,) = {*balanced.ports} - {user_port}
        users, ref = {"usernames": ["ada"]}, {"address": {"host": "127.0.0.1", "port": other}}
        await balanced.run_mutation(
            "userAffinitySet", {"users": users, "node": ref}, "terminatedCount"
        )
        await wait_until_mail_reaches(balanced, port, "ada", other)
        try:
            await balanced.set_state(other, "DOWN")
            await wait_until_mail_reaches(balanced, port, "ada", user_port)
        finally:
            await balanced.set_state(other, "UP")


async def wait_until_mail_reaches(
    balanced: BalancedServers, port: int, name: str, node_port: int
) -> None:
    """Send messages through nginx until this node receives one.

    Each worker process learns of a new node or state at its own time. Until then it can name a node
    that is down, and nginx refuses the recipient for now.
    """
    async with asyncio.timeout(BUSY_MACHINE_SECONDS):
        while await port_that_receives(balanced, port, name) != node_port:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def port_that_receives(balanced: BalancedServers, port: int, name: str) -> int | None:
    """Send a message through nginx; return the HTTP port of the node that has received it.

    None if the recipient is refused for now.
    """
    before = await balanced.load_session_counts()
    client = await connect_smtp(port)
    await client.run_command("MAIL FROM:<carol@example.com>")
    reply = await client.run_command(f"RCPT TO:<{name}@example.org>")
    if reply.startswith("451"):
        await client.close()
        return None
    assert reply.startswith("250"), (reply, (balanced.folder / "nginx.log").read_text())
    after = await balanced.load_session_counts()
    assert (await client.run_command("DATA")).startswith("354")
    client.send_bytes(MESSAGE)
    assert (await client.read_reply()).startswith("250")
    await client.close()
    (receiving_port,) = [key for key in after if after[key] > before[key]]
    async with asyncio.timeout(BUSY_MACHINE_SECONDS):
        while await balanced.load_session_counts() != before:  # noqa: ASYNC110 - other processes
            await asyncio.sleep(0.05)
    return receiving_port


async def test_killed_server_is_unreachable_and_loses_its_users(balanced: BalancedServers) -> None:
    killed, port = balanced.servers[1], balanced.servers[1].http_port
    processes = Path(f"/proc/{killed.pid}/task/{killed.pid}/children")
    children = (await asyncio.to_thread(processes.read_text)).split()
    os.kill(killed.pid, signal.SIGSTOP)  # else it replaces them
    for pid in children:
        os.kill(int(pid), signal.SIGKILL)  # else they stop in order when the first one has ended
    killed.kill()
    await balanced.wait_until_users_have_ports({balanced.ports[0]})
    async with balanced.servers[0].open_client("root") as client:
        page = await client("{ clusterNodes { nodes { port state lastFailure } } }")
    nodes = {node["port"]: node for node in page["clusterNodes"]["nodes"]}
    assert nodes[port]["state"] == "UNREACHABLE"
    assert nodes[port]["lastFailure"] == "No heartbeat for 5 seconds."
    killed.start()
    await balanced.wait_until_users_have_ports({*balanced.ports})


async def test_second_server_with_the_same_node_does_not_start(
    balanced: BalancedServers, tmp_path: Path
) -> None:
    first = balanced.servers[0]
    for arguments in ((), ("--workers", "2")):
        settings = {**first.extra_settings, "SMTP_LISTEN": f"127.0.0.1:{free_port()}"}
        folder = tmp_path / str(len(arguments))
        folder.mkdir()
        second = MerganserProcess(folder, first.store_url, settings)
        create_data_folder(folder / "var", first.folder / "var")
        refused = second.run_command("serve", *arguments)
        assert refused.exit_code != 0
        name = f"127.0.0.1:{first.http_port}"
        assert f"Another server runs as node {name}." in refused.stdout + refused.stderr
        assert "MERGANSER_NODE_ADDRESS" in refused.stdout + refused.stderr
    assert is_ready(first.http_port)


async def test_state_survives_a_restart(tmp_path: Path) -> None:
    server = MerganserProcess(tmp_path)
    server.create_users("ada")
    server.start()
    ref = {"nodes": [{"host": "mx.example.org"}], "set": {"state": "DOWN"}}
    async with server.open_client("root") as client:
        await client.run_mutation("clusterNodeUpdate", ref, "clusterNodes { state }")
    await wait_until(lambda: not is_ready(server.http_port))
    for end in (server.stop, server.kill):
        end()
        server.start()
        assert not is_ready(server.http_port)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", server.lmtp_port)
    async with server.open_client("root") as client:
        ref["set"] = {"state": "UP"}
        await client.run_mutation("clusterNodeUpdate", ref, "clusterNodes { state }")
    await wait_until(lambda: is_ready(server.http_port))
    reply = await server.deliver_by_lmtp(b"Subject: Hi\r\n\r\nHello\r\n", "ada@example.org")
    assert reply.startswith("250")
    server.stop()
