"""Where we listen: places, their sockets, and who may not find us without a credential."""

import contextlib
import gc
import ipaddress
import math
import resource
import socket
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from datetime import timedelta

import uvicorn
from sqlalchemy import exists, or_, select
from sqlmodel import col

from graph.app import App
from graph.budgets import Budgets, Rates
from graph.endpoint import Settings as Endpoint
from graph.guards import Guards
from graph.intake import Limits
from merganser import connections
from merganser.connections import Desk
from merganser.settings import PREFIX, Settings
from merganser.shares import share
from merganser.trouble import Trouble
from models.auth import ApiKey
from models.crowds import Crowd
from models.users import User
from models.world import World

BACKLOG = 2048
COLLECT = (20_000, 5, 5)  # objects, or rounds, after which the collector looks
GRACE = 20  # seconds that requests have to end
SWEEP = 10  # ticks, of a tenth of a second each


class Web(uvicorn.Server):
    """Uvicorn's server; the signals are ours, since it is not the last thing to be closed."""

    def __init__(self, app: App, config: uvicorn.Config, up: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._app = app
        self._up = up

    async def on_tick(self, counter: int) -> bool:
        """Look after the connections once a second."""
        if counter % SWEEP == 0:
            now = time.monotonic()
            for one in list(self.server_state.connections):
                if isinstance(one, connections.Http | connections.Socket):
                    one.sweep(now)
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave the signals alone: `merganser/serving.py` takes them."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and say so."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what is here stays: looking through it takes a tenth of a second each time
        gc.set_threshold(*COLLECT)
        if self._up is not None:
            self._up()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests end; uvicorn would wait for streams that have no end by themselves."""
        self._app.break_off()
        await super().shutdown(sockets)


def web(app: App, settings: Settings, up: Callable[[], None] | None = None) -> Web:
    """The HTTP server of this app, for sockets that are given; calls `up` once it answers."""
    http, websocket = connections.protocols(desk(settings))
    return Web(
        app,
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,  # operations are logged by name, not by path
            server_header=False,
            http=http,
            ws=websocket,  # sansio: a third of the memory of a socket, with deflate off
            ws_per_message_deflate=False,
            ws_max_size=1 << 20,
            timeout_keep_alive=math.ceil(settings.keep_alive.total_seconds()),
            forwarded_allow_ips=list(settings.proxies),
            timeout_graceful_shutdown=GRACE,
        ),
        up,
    )


def desk(settings: Settings) -> Desk:
    """What the connections of a server share."""
    return Desk(
        Crowd(settings.connections, settings.connections_each),
        tuple(ipaddress.ip_network(each) for each in settings.proxies),
        head=settings.head_timeout.total_seconds(),
        idle=settings.keep_alive.total_seconds(),
        write=settings.write_timeout.total_seconds(),
    )


def endpoint(settings: Settings) -> Endpoint:
    """How GraphQL is answered, and what each may ask."""
    guards = Guards(
        Budgets(Rates(settings.budget_strangers, settings.budget_users, settings.budget_admins)),
        Crowd(settings.operations, settings.operations_each),
        Crowd(settings.connections, settings.followers_each),
        settings.introspection,
        answer_max=settings.answer_max,
    )
    return Endpoint(
        receive_timeout=settings.body_timeout.total_seconds(),
        init_timeout=settings.init_timeout.total_seconds(),
        origins=settings.origins,
        guards=guards,
        only_trusted=settings.documents == "trusted",
    )


def uploads(settings: Settings, many: int) -> Limits:
    """What uploads may take in one of so many processes; the largest one always fits."""
    usual = Limits()
    return replace(usual, budget=max(share(usual.budget, many), settings.upload_max))


def place(text: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:8025" or "[::1]:8025"."""
    host, _, port = text.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def found(name: str, setting: str) -> list[tuple[int, tuple[str, int]]]:
    """Address family and address of each place that a setting names; Trouble where none."""
    host, port = place(setting)
    try:
        known = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, OverflowError, UnicodeError) as problem:
        raise Trouble(f"{PREFIX}{name}: there is no place {setting} to listen on") from problem
    return [(family, (str(address[0]), int(address[1]))) for family, _, _, _, address in known]


def sockets(
    name: str, setting: str, *, patience: timedelta = timedelta(0), shared: bool = False
) -> list[socket.socket]:
    """Sockets bound to all addresses of a place; Trouble, naming the setting, where that fails.

    Where a connection takes nothing of what was sent for `patience`, the kernel ends it: what
    we hold for it is let go, also where its buffers are full and it could not be closed.
    What is `shared` may be bound several times: the kernel spreads connections evenly.
    """
    bound: list[socket.socket] = []
    try:
        for family, address in found(name, setting):
            # asyncio sets TCP_NODELAY only if the protocol is named: without it each response on
            # a kept connection waits 40 ms for an acknowledgement
            one = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            bound.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _let_go(one, patience)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
            one.listen(BACKLOG)
            one.setblocking(False)
    except OSError as problem:
        for one in bound:
            one.close()
        raise unbound(name, setting, problem) from problem
    return bound


def _let_go(listener: socket.socket, patience: timedelta) -> None:
    """Let the kernel drop peers that vanished or never read; accepted sockets inherit it."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if patience and hasattr(socket, "TCP_USER_TIMEOUT"):  # of Linux
        milliseconds = min(int(patience.total_seconds() * 1000), 2**31 - 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def more_files() -> None:
    """Let this process open as many files and connections as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def unbound(name: str, setting: str, problem: OSError) -> Trouble:
    """What to say where we cannot listen."""
    reason = (problem.strerror or str(problem)).lower()
    return Trouble(f"cannot listen on {setting}: {reason}; set {PREFIX}{name} to another place")


def places(settings: Settings) -> dict[str, str]:
    """The settings that name a place where we listen, and the places."""
    named = {
        "HTTP": settings.http,
        "LMTP": settings.lmtp,
        "SMTP": settings.smtp,
        "SUBMISSION": settings.submission,
        "SUBMISSIONS": settings.submissions,
        "ACME_HTTP": settings.acme_http,
    }
    return {name: place for name, place in named.items() if place}


def outside(settings: Settings) -> list[str]:
    """The names of settings by which others than this machine could reach us."""
    return [
        name
        for name, setting in places(settings).items()
        if not all(_loopback(address[0]) for _, address in found(name, setting))
    ]


def _loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


async def guarded(world: World, settings: Settings) -> None:
    """Trouble where others could reach us and nobody could yet prove who they are."""
    names = outside(settings)
    if not names or settings.bootstrap_key:
        return
    now = world.now()
    good = or_(col(ApiKey.expires_at).is_(None), col(ApiKey.expires_at) > now)
    known = or_(
        exists(select(col(ApiKey.id)).where(good)),
        exists(select(col(User.id)).where(col(User.password).is_not(None), ~col(User.disabled))),
    )
    (row,) = await world.database.read(select(known.label("known")))
    if not row.known:
        raise Trouble(
            f"{PREFIX}{names[0]} is open to other machines and no credential is set: "
            "make one with `merganser token create --name root --role ROOT`"
        )
