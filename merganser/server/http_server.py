"""The HTTP server: its limits, and the credential without which it must not be reachable."""

import contextlib
import gc
import ipaddress
import math
import socket
import time
from collections.abc import Callable, Generator
from dataclasses import replace

import uvicorn
from sqlalchemy import exists, or_, select
from sqlmodel import col

from graph.app import App
from graph.http.admission_control import Guards
from graph.http.graphql_endpoint import Settings as Endpoint
from graph.http.rate_budgets import Budgets, Rates
from graph.http.upload_body import Limits
from merganser.errors import Trouble
from merganser.server import http_connections
from merganser.server.http_connections import Desk
from merganser.server.processes.process_shares import share
from merganser.server.sockets import exposed_settings
from merganser.settings.settings import PREFIX, Settings
from models.auth.credentials import ApiKey
from models.runtime.concurrency_limits import Crowd
from models.runtime.environment import World
from models.users.tables import User

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
                if isinstance(one, http_connections.Http | http_connections.Socket):
                    one.sweep(now)
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave the signals alone: `merganser/server/lifecycle.py` takes them."""
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
    http, websocket = http_connections.protocols(desk(settings))
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
    budget = max(share(usual.budget, many), settings.upload_max)
    return replace(usual, budget=budget, disk_reserve=settings.disk_reserve)


async def require_credential(world: World, settings: Settings) -> None:
    """Raise Trouble if other machines can reach the server and no credential exists."""
    names = exposed_settings(settings)
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
