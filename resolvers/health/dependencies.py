"""The services that a process depends on, and their probes. Each probe is a real request."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import dns.exception
from sqlalchemy import func, literal_column, select
from sqlmodel import col

from mail.network.dns_resolver import create_resolver
from mail.network.outbound_http import HttpRequestFailed, NetworkPolicy, open_connection
from mail.scanners.circuit_breaker import ScannerUnavailable
from mail.scanners.clamd import query_clamd_version
from mail.scanners.rspamd import RspamdEndpoint
from mail.storage.blobs.object_stores import BucketStore, FolderStore
from mail.storage.blobs.tiered_store import TieredStore
from mail.tls.acme_client import AcmeError, new_account_key
from mail.tls.acme_connection import connect_acme
from models.certificates import Certificate
from models.runtime.environment import Environment
from models.runtime.options import NO_NAME_SERVER
from models.store.object_store import ObjectStoreProtocol
from models.store.postgres.address import parse_postgres_address
from resolvers.certificates.acme_accounts import acme_server
from resolvers.cluster.loaders import is_first_reachable_server

PROBE_TIMEOUT = 0.7  # seconds
PROBE_PAUSE = 0.3  # seconds between the end of a probe and the next one
# Certificate authorities limit requests, and need longer than services of the platform.
ACME_PROBE_TIMEOUT = 20.0  # seconds
ACME_PROBE_PAUSE = 60.0  # seconds
MAX_ACME_DIRECTORIES = 5  # that are probed
MAX_RESPONSE = 4096  # bytes
PROBED_OBJECT = f"00/{'0' * 64}.0"  # no object has this name
ANY_NETWORK = NetworkPolicy(allows_private=True)  # operators configure these addresses


class ProbeFailed(Exception):
    """The service answered, but not as it must. The text has no secret."""


class ProbedElsewhere(Exception):
    """Another process probes the service."""


Probe = Callable[[Environment], Awaitable[str | None]]  # returns the version of the service


@dataclass(frozen=True, slots=True)
class DependencyDefinition:
    """A service: its probe, and its address; an empty address if it is not configured.

    A probe fails after `timeout` seconds. The next one begins `pause` seconds after its end.
    """

    name: str
    probe: Probe
    address: Callable[[Environment], str]
    timeout: float = PROBE_TIMEOUT
    pause: float = PROBE_PAUSE


def failure_text(problem: Exception, timeout: float) -> str:
    """Return why a probe with this timeout failed. Texts of unknown errors can have secrets."""
    if isinstance(problem, TimeoutError):
        return f"No answer within {timeout:g} s."
    if isinstance(problem, ProbeFailed | HttpRequestFailed | ScannerUnavailable):
        return str(problem)
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return type(problem).__name__


async def _probe_database(environment: Environment) -> str | None:
    """Return the product and version of the database."""
    is_sqlite = environment.database.dialect == "sqlite"
    version = func.sqlite_version() if is_sqlite else func.current_setting("server_version")
    (row,) = await environment.database.read(select(version.label("version"), literal_column("1")))
    return f"{'SQLite' if is_sqlite else 'PostgreSQL'} {row.version}"


def _database_address(environment: Environment) -> str:
    """Return the file of SQLite, or host and port of PostgreSQL."""
    database = environment.database
    if database.dialect == "sqlite":
        return database.engine.url.database or ":memory:"
    hosts = parse_postgres_address(database.url).hosts
    return ", ".join(f"{host.address or host.name}:{host.port}" for host in hosts)


async def _probe_event_bus(environment: Environment) -> str | None:
    """Check the event bus. Returns None, since it has no version."""
    await environment.wakeups.check_bus()
    return None


def _hot_store(environment: Environment) -> ObjectStoreProtocol:
    store = environment.object_store
    return store.hot if isinstance(store, TieredStore) else store


def _cold_store(environment: Environment) -> ObjectStoreProtocol | None:
    store = environment.object_store
    return store.cold if isinstance(store, TieredStore) else None


async def _probe_hot_store(environment: Environment) -> str | None:
    """Probe the hot store or the only one. Returns None, since object stores have no version."""
    await _probe_object_store(_hot_store(environment))
    return None


async def _probe_cold_store(environment: Environment) -> str | None:
    """Probe the cold store, if there is one. Returns None, since object stores have no version.

    Raises the error of the store, or ProbeFailed.
    """
    store = _cold_store(environment)
    if store is not None:
        await _probe_object_store(store)
    return None


async def _probe_object_store(store: ObjectStoreProtocol) -> None:
    """Ask the store for an object. Raises ProbeFailed if its folder is missing."""
    if isinstance(store, FolderStore) and not await asyncio.to_thread(store.folder.is_dir):
        raise ProbeFailed("The folder does not exist.")
    await store.size(PROBED_OBJECT)


def address_of_store(store: ObjectStoreProtocol | None) -> str:
    """Return the folder of an object store, or the URL of its bucket; "" without a store."""
    if store is None:
        return ""
    if isinstance(store, FolderStore):
        return str(store.folder)
    return store.url if isinstance(store, BucketStore) else type(store).__name__


async def _probe_rspamd_and_return_version(environment: Environment) -> str | None:
    """Ping Rspamd; its header field Server has its version."""
    target = RspamdEndpoint(environment.options.rspamd_url).command_target("ping")
    reader, writer = await open_connection(target, ANY_NETWORK)
    try:
        head = f"GET {target.path} HTTP/1.0\r\nHost: {target.authority}\r\n\r\n"
        writer.write(head.encode())
        response = await reader.read(MAX_RESPONSE)
    finally:
        writer.transport.abort()
    lines = response.decode("latin-1").split("\r\n")
    status_code = lines[0].partition(" ")[2][:3]
    if status_code != "200":
        raise ProbeFailed(f"Status {status_code if status_code.isdigit() else 'missing'}.")
    fields = (line.partition(":") for line in lines[1:])
    servers = [value.strip() for name, _, value in fields if name.lower() == "server"]
    return servers[0] if servers and servers[0].isprintable() else None


def _rspamd_address(environment: Environment) -> str:
    return urlsplit(environment.options.rspamd_url).netloc.rpartition("@")[2]


async def _probe_clamd(environment: Environment) -> str | None:
    return await query_clamd_version(environment.options.clamd_address)


async def _probe_resolver(environment: Environment) -> str | None:
    """Query the name server for the NS records of the root, which each resolver can answer.

    Returns None, since name servers have no version. Raises TimeoutError or ProbeFailed.
    """
    resolver = create_resolver(environment.options.dns_resolver)
    try:
        await resolver.resolve(".", "NS", lifetime=PROBE_TIMEOUT, raise_on_no_answer=False)
    except dns.exception.Timeout as problem:
        raise TimeoutError from problem
    except dns.exception.DNSException as problem:
        raise ProbeFailed("The name server gave no valid answer.") from problem
    return None


def _resolver_address(environment: Environment) -> str:
    name_server = environment.options.dns_resolver
    return "" if name_server == NO_NAME_SERVER else name_server or "system"


async def _probe_acme_directories_on_one_process(environment: Environment) -> str | None:
    """Probe the ACME directory of the settings, and those that stored certificates came from.

    Returns None, since a directory has no version. Raises ProbeFailed if one does not answer or is
    no ACME directory. Only one process sends requests: the one with the worker `acme` on the first
    reachable server. In all others it raises ProbedElsewhere.
    """
    has_worker = environment.components.find("acme") is not None
    if not has_worker or not await is_first_reachable_server(environment):
        raise ProbedElsewhere
    is_issued = col(Certificate.acme_directory).is_not(None)
    statement = select(col(Certificate.acme_directory)).where(is_issued).distinct()
    rows = await environment.database.read(statement.limit(MAX_ACME_DIRECTORIES))
    urls = dict.fromkeys([environment.options.acme_directory, *(str(row[0]) for row in rows)])
    for url in urls:
        server, unused_key = acme_server(environment, url), await asyncio.to_thread(new_account_key)
        try:
            async with connect_acme(server, unused_key) as client:
                if not client.accepts_orders:
                    raise ProbeFailed(f"{_host_and_path(url)}: the response is no ACME directory.")
        except AcmeError as problem:
            raise ProbeFailed(f"{_host_and_path(url)}: {problem}") from problem
    return None


def _acme_address(environment: Environment) -> str:
    options = environment.options
    return _host_and_path(options.acme_directory) if options.acme_terms_agreed else ""


def _host_and_path(url: str) -> str:
    """Return a URL without scheme, credentials and query."""
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] + parts.path


DEPENDENCIES = (
    DependencyDefinition("database", _probe_database, _database_address),
    DependencyDefinition(
        "eventBus", _probe_event_bus, lambda environment: environment.wakeups.bus_name or ""
    ),
    DependencyDefinition(
        "blobs", _probe_hot_store, lambda environment: address_of_store(_hot_store(environment))
    ),
    DependencyDefinition(
        "coldBlobs",
        _probe_cold_store,
        lambda environment: address_of_store(_cold_store(environment)),
    ),
    DependencyDefinition("rspamd", _probe_rspamd_and_return_version, _rspamd_address),
    DependencyDefinition(
        "clamav", _probe_clamd, lambda environment: environment.options.clamd_address
    ),
    DependencyDefinition(
        "resolver",
        _probe_resolver,
        _resolver_address,
    ),
    DependencyDefinition(
        "acmeDirectory",
        _probe_acme_directories_on_one_process,
        _acme_address,
        timeout=ACME_PROBE_TIMEOUT,
        pause=ACME_PROBE_PAUSE,
    ),
)
