"""Connections to PostgreSQL: all parts of Merganser open them here."""

import os
import pwd
import random
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from models.store.outages import StorageUnavailable
from models.store.postgres.address import PostgresAddressError, PostgresHost, parse_postgres_address
from models.store.postgres.limits import (
    CONNECT_TIMEOUT,
    CONNECTION_CHECK_VERSION,
    SESSION_SETTINGS,
    TCP_KEEPALIVE,
    TCP_USER_TIMEOUT_MS,
)
from models.store.postgres.tls import NamedContext, tls_context_for_host_or_none

CONNECTION_ERRORS = (
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.exceptions.InternalClientError,  # no host has the target session attributes
)


class PostgresConnector:
    """Opens connections to one address, each with the session settings of Merganser."""

    def __init__(self, url: str) -> None:
        self.address = parse_postgres_address(url)
        self._tls = [
            tls_context_for_host_or_none(self.address, host) for host in self.address.hosts
        ]
        options = self.address.get("options")
        self._session_settings = {
            name: value for name, value in SESSION_SETTINGS.items() if name not in options
        }

    async def connect(self, *_args: Any, **_kwargs: Any) -> Any:
        """Open a connection to the first host that can be used.

        Raises StorageUnavailable, caused by the last failure, if there is none.
        """
        hosts_with_tls = list(zip(self.address.hosts, self._tls, strict=True))
        if self.address.get("load_balance_hosts") == "random":
            random.shuffle(hosts_with_tls)
        target_attributes = self.address.get("target_session_attrs", "any")
        failure: Exception = OSError("no host")
        for attributes in (
            ("standby", "any") if target_attributes == "prefer-standby" else (target_attributes,)
        ):
            for host, tls in hosts_with_tls:
                try:
                    connection = await self._open_connection(host, tls, attributes)
                    await self._configure_connection_or_terminate(connection, host)
                except PostgresAddressError:
                    raise
                except CONNECTION_ERRORS as problem:
                    failure = problem
                    continue
                return connection
        raise StorageUnavailable("No connection to the database: retry later.") from failure

    async def _open_connection(
        self, host: PostgresHost, tls: NamedContext | None, attributes: str
    ) -> Any:
        timeout = self.address.get_number("connect_timeout", CONNECT_TIMEOUT)
        connect_options: dict[str, Any] = {"ssl": False if tls is None else tls}
        if tls is not None and self.address.sslmode in {"allow", "prefer"}:
            connect_options = {"dsn": self._tls_parameters_dsn(), "ssl": None}
        names = ("user", "password", "passfile", "krbsrvname", "gsslib")
        names_and_values = {
            name: self.address.get(name) for name in names if self.address.get(name)
        }
        return await asyncpg.connect(
            host=host.address or host.name,
            port=host.port,
            database=self.address.get("dbname") or None,
            server_settings=self._startup_settings(),
            target_session_attrs=attributes,
            direct_tls=self.address.get("sslnegotiation") == "direct",
            timeout=max(timeout, 2) if timeout > 0 else None,  # libpq: 0 means no limit
            **names_and_values,
            **connect_options,
        )

    def _tls_parameters_dsn(self) -> str:
        """Return a DSN with the TLS parameters that the driver must retry without."""
        names = (
            "sslcert", "sslkey", "sslpassword", "ssl_min_protocol_version",
            "ssl_max_protocol_version",
        )  # fmt: skip
        names_and_values = {
            name: self.address.get(name) for name in names if self.address.get(name)
        }
        return f"postgresql://?{urlencode({'sslmode': self.address.sslmode, **names_and_values})}"

    def _startup_settings(self) -> dict[str, str]:
        fallback = self.address.get("fallback_application_name", "merganser")
        startup = {"application_name": self.address.get("application_name", fallback)}
        if options := self.address.get("options"):
            startup["options"] = options
        return startup

    async def _configure_connection_or_terminate(self, connection: Any, host: PostgresHost) -> None:
        try:
            handle = connection._transport.get_extra_info("socket")  # noqa: SLF001
            if host.is_socket:
                self._require_peer_user(handle)
            else:
                self._set_keepalive(handle.fileno())
            settings = dict(self._session_settings)
            if connection.get_server_version().major < CONNECTION_CHECK_VERSION:
                settings.pop("client_connection_check_interval", None)
            statements = [f"SET {name} = '{value}'" for name, value in settings.items()]
            await connection.execute("; ".join(statements))
        except BaseException:
            connection.terminate()
            raise

    def _require_peer_user(self, handle: Any) -> None:
        """Check that the server runs as the user of `requirepeer`."""
        if name := self.address.get("requirepeer"):
            size = struct.calcsize("3i")
            with socket.socket(fileno=os.dup(handle.fileno())) as copy:
                raw = copy.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            user_name = pwd.getpwuid(struct.unpack("3i", raw)[1]).pw_name
            if user_name != name:
                raise PostgresAddressError(
                    f"requirepeer: the server runs as {user_name}, not as {name}"
                )

    def _set_keepalive(self, handle: int) -> None:
        """Let the kernel notice that the server's machine has vanished."""
        if self.address.get("keepalives", "1") == "0":
            return
        options = {
            name: self.address.get_number(name, 0) or value for name, value in TCP_KEEPALIVE.items()
        }
        with socket.socket(fileno=os.dup(handle)) as copy, suppress(OSError):
            copy.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for key, name in (
                ("TCP_KEEPIDLE", "keepalives_idle"),
                ("TCP_KEEPINTVL", "keepalives_interval"),
                ("TCP_KEEPCNT", "keepalives_count"),
            ):
                if hasattr(socket, key):
                    copy.setsockopt(socket.IPPROTO_TCP, getattr(socket, key), options[name])
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                timeout = self.address.get_number("tcp_user_timeout", 0) or TCP_USER_TIMEOUT_MS
                copy.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout)


def postgres_engine(url: str, **options: Any) -> AsyncEngine:
    """Create an engine that opens its connections with a PostgresConnector.

    Raises PostgresAddressError if the address can't be used.
    """
    connect: Callable[..., Any] = PostgresConnector(url).connect
    parameters: Mapping[str, Any] = {"async_creator_fn": connect}
    return create_async_engine("postgresql+asyncpg://", connect_args=parameters, **options)
