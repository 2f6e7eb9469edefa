"""Registration of the server as a node of the platform, and the state that it starts with."""

import logging
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack

from merganser.errors import CommandError
from merganser.server.processes.process_roles import ProcessRole
from merganser.server.sockets import split_host_port
from merganser.settings.settings import PREFIX, Settings
from models.cluster.own_node import NodeAddress
from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.runtime.options import Options
from models.store.outages import skip_if_disk_full
from resolvers.cluster.node_state import NodeStateEnforcer, load_own_node_row
from resolvers.cluster.registration import (
    NodeNameInUse,
    mark_own_node_stopped,
    register_node,
)
from resolvers.cluster.validation import normalized_host
from resolvers.health.update import apply_component_holds

log = logging.getLogger("merganser")


def node_address(settings: Settings, http_sockets: Sequence[socket.socket] = ()) -> NodeAddress:
    """Return the name of the node of this server, and the ports of its mail listeners.

    Raises CommandError if MERGANSER_NODE_ADDRESS has no valid host name.
    """
    _, port = split_host_port(settings.http_listen)
    if http_sockets:  # port 0 of the setting chooses a free one
        port = int(http_sockets[0].getsockname()[1])
    host = settings.hostname
    if host == Options().hostname:
        host = socket.gethostname()
    if settings.node_address is not None:
        host, port = split_host_port(settings.node_address)
    try:
        host = normalized_host(host)
    except InvalidInput as problem:
        text = f"{PREFIX}NODE_ADDRESS is wrong: {host} is no host name or IP address."
        raise CommandError(text) from problem
    return NodeAddress(
        host, port, _port_or_none(settings.smtp_listen), _port_or_none(settings.submission_listen)
    )


def _port_or_none(listen_address: str | None) -> int | None:
    """Return the port of a listen address; None without one, or if the system chooses it."""
    return (split_host_port(listen_address)[1] or None) if listen_address else None


async def register_server(environment: Environment, address: NodeAddress) -> None:
    """Register the server as a node. Raises CommandError if another server has its name."""
    try:
        with skip_if_disk_full():  # the heartbeats register it
            environment.own_node.node_id = await register_node(environment, address)
    except NodeNameInUse as problem:
        text = f"{problem} Set {PREFIX}NODE_ADDRESS of this server to another host:port."
        raise CommandError(text) from problem


async def register_node_and_apply_its_state(
    environment: Environment,
    settings: Settings,
    process_role: ProcessRole,
    http_sockets: Sequence[socket.socket],
    stack: AsyncExitStack,
) -> None:
    """Register the server if it has one process, and apply the stored state of its node.

    Must be called before the server starts work: components that an operator has stopped on the
    node do not start. When `stack` closes, the first process marks the node as unreachable in the
    database. Raises CommandError if another server uses the name of the node.
    """
    own_node = environment.own_node
    if process_role.accepts_connections and process_role.process_index == 0:
        own_node.address = node_address(settings, http_sockets)
        if not process_role.server_id:
            await register_server(environment, own_node.address)
        stack.push_async_callback(_mark_stopped_or_log_failure, environment)
    await NodeStateEnforcer(environment).enforce_node_state(await load_own_node_row(environment))
    await apply_component_holds(environment)


async def _mark_stopped_or_log_failure(environment: Environment) -> None:
    try:
        await mark_own_node_stopped(environment)
    except Exception:  # the server stops anyway; other servers notice the missing heartbeat
        log.exception("Could not mark the node as stopped")
