"""A network of two hosts, for servers that listen on fixed ports or check a client's address."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.servers.ports import free_port
from tests.support.run_scope import CI
from tests.support.servers.fork_server import OWN_NETWORK, join_network_namespace
from tests.support.servers.forked_process import ROOT, fork_server
from tests.support.servers.program_process import program_path, require_program

NAMESPACE_FOLDER = Path("/run/netns")  # of `ip netns`
SERVICE_ADDRESS = "192.0.2.1"  # of the test process
HOST_ADDRESSES = ("192.0.2.11", "192.0.2.12")
PREFIX_LENGTH = 24


@dataclass(frozen=True, slots=True)
class Host:
    """A host of the network, which is a network namespace or a loopback address."""

    address: str
    listen_address: str  # all addresses of the namespace, or the loopback address
    namespace: str = ""  # its name for `ip netns`

    @property
    def command_prefix(self) -> tuple[str, ...]:
        """The command that runs another one on this host."""
        return (program_path("ip"), "netns", "exec", self.namespace) if self.namespace else ()

    def enter(self) -> AbstractContextManager[None]:
        """Start processes and open sockets of this thread on the host until the block ends."""
        return _entered_namespace(self.namespace) if self.namespace else nullcontext()


@dataclass(frozen=True, slots=True)
class HostNetwork:
    """Two hosts that reach each other, and the address at which they reach the test process."""

    service_address: str
    hosts: tuple[Host, Host]


def require_networks() -> None:
    """Skip the test if it can't change routes, but fail in CI, which runs as root."""
    require_program("ip")
    if os.geteuid() != 0 and not CI:
        pytest.skip("only root can add hosts and routes, and listen on port 25")


@contextmanager
def connected_hosts() -> Iterator[HostNetwork]:
    """Connect two network namespaces to a third, which the calling thread enters.

    The network of the machine is unchanged. Where no namespace can be made, as in some containers,
    the hosts are two loopback addresses.
    """
    services, *hosts = (f"merganser-{free_port()}-{name}" for name in ("services", "one", "two"))
    fork_server(ROOT)  # the other namespaces can't connect to its abstract socket
    with ExitStack() as resources:
        try:
            for name in (services, *hosts):
                _run_ip("netns", "add", name)
                resources.callback(_run_ip, "netns", "delete", name)
            _connect_namespaces(services, hosts)
        except subprocess.CalledProcessError:
            resources.close()
            yield resources.enter_context(_loopback_network())
            return
        resources.enter_context(_entered_namespace(services))
        first, second = (
            Host(address, "0.0.0.0", name)  # noqa: S104 - all addresses of the namespace
            for address, name in zip(HOST_ADDRESSES, hosts, strict=True)
        )
        yield HostNetwork(SERVICE_ADDRESS, (first, second))


def _connect_namespaces(services: str, hosts: list[str]) -> None:
    """Connect the hosts by a switch in the namespace of the services."""
    _run_ip("-n", services, "link", "set", "lo", "up")
    _run_ip("-n", services, "link", "add", "switch", "type", "bridge")
    _run_ip("-n", services, "link", "set", "switch", "up")
    _run_ip("-n", services, "address", "add", f"{SERVICE_ADDRESS}/{PREFIX_LENGTH}", "dev", "switch")
    for number, (host, address) in enumerate(zip(hosts, HOST_ADDRESSES, strict=True)):
        cable = ("type", "veth", "peer", "name", "eth0", "netns", host)
        _run_ip("-n", services, "link", "add", f"port{number}", *cable)
        _run_ip("-n", services, "link", "set", f"port{number}", "master", "switch", "up")
        _run_ip("-n", host, "address", "add", f"{address}/{PREFIX_LENGTH}", "dev", "eth0")
        for interface in ("lo", "eth0"):
            _run_ip("-n", host, "link", "set", interface, "up")


@contextmanager
def _entered_namespace(name: str) -> Iterator[None]:
    """Move this thread to a network namespace until the block ends."""
    descriptors = own, other = [
        os.open(path, os.O_RDONLY) for path in (OWN_NETWORK, NAMESPACE_FOLDER / name)
    ]
    try:
        join_network_namespace(other)
        yield
    finally:
        join_network_namespace(own)
        for descriptor in descriptors:
            os.close(descriptor)


@contextmanager
def _loopback_network() -> Iterator[HostNetwork]:
    """Yield hosts with two loopback addresses. Connections to one of them come from the other.

    Without these routes, the source of every connection to loopback is 127.0.0.1.
    """
    high, low = divmod(free_port(), 256)  # no other test has the port, so none has the addresses
    first, second = f"127.{high}.{low}.1", f"127.{high}.{low}.2"
    with ExitStack() as routes:
        for target, source in ((first, second), (second, first)):
            route = ["local", target, "dev", "lo", "table", "local", "src", source]
            _run_ip("route", "add", *route)
            routes.callback(_run_ip, "route", "delete", *route)
        yield HostNetwork("127.0.0.1", (Host(first, first), Host(second, second)))


def _run_ip(*arguments: str) -> None:
    subprocess.run([program_path("ip"), *arguments], check=True)
