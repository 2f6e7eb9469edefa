"""The HTTP server with its limits, and the check that a credential exists if it is public."""

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

COLLECT = (20_000, 5, 5)  # of each generation of the garbage collector
GRACE = 20  # seconds for requests to end
SWEEP = 10  # of uvicorn, 0.1 seconds each


class Web(uvicorn.Server):
    """Uvicorn's server without its signal handlers, since workers must end after it."""

    def __init__(self, app: App, config: uvicorn.Config, up: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._app = app
        self._up = up

    async def on_tick(self, counter: int) -> bool:
        """Close connections that are too slow, once per second."""
        if counter % SWEEP == 0:
            now = time.monotonic()
            for one in list(self.server_state.connections):
                if isinstance(one, http_connections.Http | http_connections.Socket):
                    one.sweep(now)
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Set no signal handlers: `merganser/server/lifecycle.py` handles signals."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept requests, and call `on_started`."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # these objects stay: checking them takes 0.1 seconds per collection
        gc.set_threshold(*COLLECT)
        if self._up is not None:
            self._up()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End subscriptions, which uvicorn would wait for, then wait for other requests."""
        self._app.break_off()
        await super().shutdown(sockets)


def web(app: App, settings: Settings, up: Callable[[], None] | None = None) -> Web:
    """Create the HTTP server of this app. It calls `on_started` when it accepts requests."""
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
    """Create the limits and timeouts of HTTP connections from the settings."""
    return Desk(
        Crowd(settings.connections, settings.connections_each),
        tuple(ipaddress.ip_network(each) for each in settings.proxies),
        head=settings.head_timeout.total_seconds(),
        idle=settings.keep_alive.total_seconds(),
        write=settings.write_timeout.total_seconds(),
    )


def endpoint(settings: Settings) -> Endpoint:
    """The options of the GraphQL endpoint: timeouts, origins and limits of callers."""
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
    """The upload limits of one of several processes. The largest upload always fits."""
    usual = Limits()
    budget = max(share(usual.budget, many), settings.upload_max)
    return replace(usual, budget=budget, disk_reserve=settings.disk_reserve)


async def require_credential(environment: World, settings: Settings) -> None:
    """Raise CommandError if other machines can reach the server and no credential exists."""
    names = exposed_settings(settings)
    if not names or settings.bootstrap_key:
        return
    now = environment.now()
    good = or_(col(ApiKey.expires_at).is_(None), col(ApiKey.expires_at) > now)
    known = or_(
        exists(select(col(ApiKey.id)).where(good)),
        exists(select(col(User.id)).where(col(User.password).is_not(None), ~col(User.disabled))),
    )
    (row,) = await environment.database.read(select(known.label("known")))
    if not row.known:
        raise Trouble(
            f"{PREFIX}{names[0]} is open to other machines and no credential is set: "
            "make one with `merganser token create --name root --role ROOT`"
        )
