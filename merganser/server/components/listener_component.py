"""A listener as a component: it can refuse connections and accept them again."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from merganser.server.sockets import BACKLOG
from models.runtime.components import (
    Component,
    ComponentKind,
    ComponentRegistry,
    ComponentState,
)
from models.runtime.environment import Environment

LISTENER_STOP_TIMEOUT = 30.0  # seconds for messages in DATA, when the server stops


class StartableListener(Protocol):
    """A listener of a protocol. It is started on sockets, and closed once."""

    async def start(self, *, sock: socket.socket) -> None:
        """Accept connections on a listening socket."""

    async def close(self, timeout: float = ...) -> None:  # noqa: ASYNC109
        """Accept no more connections, and end the sessions within the timeout in seconds."""


@dataclass(frozen=True, slots=True)
class ListenerDefinition:
    """A listener with its bound sockets, and the function that creates its next run."""

    name: str
    address: str
    bound_sockets: Sequence[socket.socket]
    create_listener: Callable[[], StartableListener]
    finish_timeout: float  # seconds for messages in DATA while the listener is being stopped


class ListenerComponent(Component):
    """A listener with its bound sockets.

    While it is held, the sockets stay bound but refuse connections. The first process of a server
    may have them open, too: closing them in this process would let connections wait for nothing.
    """

    def __init__(self, definition: ListenerDefinition, now: Callable[[], datetime]) -> None:
        super().__init__(definition.name, ComponentKind.LISTENER, now, address=definition.address)
        self._sockets = definition.bound_sockets
        self._create_listener = definition.create_listener
        self._finish_timeout = definition.finish_timeout
        self._listener: StartableListener | None = None

    async def start_work(self) -> None:
        """Accept connections with a new listener."""
        listener = self._listener = self._create_listener()
        try:
            for bound_socket in self._sockets:
                with suppress(OSError):
                    bound_socket.listen(BACKLOG)  # it may have been shut down
                await listener.start(sock=bound_socket.dup())
        except BaseException:  # no socket must accept connections for a failed listener
            await listener.close(0)
            await self.refuse_work()
            raise

    async def refuse_work(self) -> None:
        """Refuse connections."""
        for bound_socket in self._sockets:
            with suppress(OSError):  # it does not listen yet
                bound_socket.shutdown(socket.SHUT_RDWR)

    async def finish_work(self) -> None:
        """Refuse connections, and end the sessions; messages in DATA are finished first."""
        if self._listener is None:
            return
        closing = asyncio.create_task(self._listener.close(self._finish_timeout))
        await asyncio.sleep(0)  # an event loop must not accept from a socket that is shut down
        await self.refuse_work()
        await closing

    async def close(self) -> None:
        """Close the listener and its sockets, since the server ends."""
        self.ignore_holds()
        for bound_socket in self._sockets:
            bound_socket.close()
        if self._listener is not None:
            await self._listener.close(LISTENER_STOP_TIMEOUT)


@asynccontextmanager
async def running_listeners(
    environment: Environment, definitions: Iterable[ListenerDefinition]
) -> AsyncGenerator[None]:
    """Run listeners as components, and close them at the end.

    They close concurrently: each one finishes the message that it is storing. Raises the error that
    prevents a start.
    """
    started: list[ListenerComponent] = []
    try:
        for definition in definitions:
            component = ListenerComponent(definition, environment.now)
            started.append(component)
            environment.components.add(component)
            await component.start()
        yield
    finally:
        await asyncio.gather(*(component.close() for component in started))
        for component in started:
            environment.components.remove(component)


def add_disabled_listeners(
    registry: ComponentRegistry, names: Iterable[str], now: Callable[[], datetime]
) -> None:
    """Add those of these listeners that the registry does not have. They are not configured."""
    for name in names:
        if registry.find(name) is None:
            component = Component(name, ComponentKind.LISTENER, now, can_be_held=False)
            component.set_state(ComponentState.DISABLED, "Not configured.")
            registry.add(component)


class FixedListenerComponent(Component):
    """A listener that can't be held: it runs until the server stops."""

    def __init__(self, name: str, now: Callable[[], datetime], *, address: str) -> None:
        super().__init__(name, ComponentKind.LISTENER, now, address=address, can_be_held=False)

    async def start_work(self) -> None:
        """Do nothing: the server starts this listener."""
