"""The checks of `merganser doctor`: versions, files, database, ports and DNS."""

import asyncio
import os
import shutil
import socket
import sqlite3
import stat
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import dns.exception
import dns.resolver
from dns.asyncresolver import Resolver
from sqlalchemy import select, text
from sqlmodel import col

from mail.addresses.address_syntax import ascii_domain
from mail.network.dns_resolver import resolver as resolver_at
from merganser.doctor.certificates import certified
from merganser.doctor.findings import Finding, Verdict, action, hint, ok
from merganser.errors import Trouble
from merganser.server import arc_keys, environment_factory, key_file, sockets
from merganser.server.store import store_lock
from merganser.server.store.migration import lacking
from merganser.settings.settings import PREFIX, Settings
from models.domains.tables import Domain
from models.quantities import rounded
from models.store.database import Database

PATIENCE = 3.0  # seconds
DOMAINS = 20  # checked in DNS
LOW = 1 << 30  # bytes; a hint below
FULL = 200 << 20  # bytes; an action below
RESERVED = ("example", "test", "invalid", "localhost")  # RFC 6761
PUBLIC = 0o077
RECENT = datetime(2025, 1, 1, tzinfo=UTC)


Check = Callable[[Settings], Awaitable[list[Finding]]]


async def examine(settings: Settings) -> list[Finding]:
    """Run all checks and return their findings. A check that raises becomes a finding."""
    checks: dict[str, Check] = {
        "programs": _programs,
        "clock": _clock,
        "folder": _folder,
        "secret": _secret,
        "disk": _disk,
        "store": _store,
        "vault": _vault,
        "seals": _seals,
        "certified": certified,
        "blobs": _blobs,
        "ports": _ports,
        "names": _names,
    }
    found: list[Finding] = []
    try:
        environment_factory.url_of(settings)
    except Trouble as trouble:
        return action("store", trouble.message, f"set {PREFIX}STORE right")
    for name, check in checks.items():
        try:
            found += await check(settings)
        except Trouble as trouble:
            found += action(name, trouble.message, "see there")
    return found


async def _programs(_settings: Settings) -> list[Finding]:
    versions = f"Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}"
    if sqlite3.sqlite_version_info < (3, 35):
        return action("programs", versions, "use a Python with SQLite 3.35 or newer")
    return ok("programs", versions)


async def _clock(_settings: Settings) -> list[Finding]:
    now = datetime.now(UTC)
    if now < RECENT:
        return action("clock", now.isoformat(), "set the clock of this machine")
    return ok("clock", now.isoformat(timespec="seconds"))


async def _folder(settings: Settings) -> list[Finding]:
    data = settings.data
    if not data.exists():
        return hint("data folder", f"{data} is not there yet", "`merganser init` makes it")
    if not os.access(data, os.R_OK | os.W_OK | os.X_OK):
        return action("data folder", f"{data} is not ours to write", "chown it to this user")
    mode = stat.S_IMODE(data.stat().st_mode)
    if mode & PUBLIC:
        return action("data folder", f"others may look into {data} ({mode:o})", f"chmod 700 {data}")
    return ok("data folder", str(data.absolute()))


async def _secret(settings: Settings) -> list[Finding]:
    if settings.secret:
        return ok("secret", f"from {PREFIX}SECRET")
    path = settings.data / "secret"
    if not path.exists():
        return hint("secret", f"{path} is not there yet", "`merganser init` makes it")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & PUBLIC:
        return action("secret", f"others may read {path} ({mode:o})", f"chmod 600 {path}")
    environment_factory.secret(settings)
    return ok("secret", str(path))


async def _disk(settings: Settings) -> list[Finding]:
    found: list[Finding] = []
    for folder in _folders(settings):
        free = shutil.disk_usage(_existing(folder)).free
        free_space = f"{rounded(free)} free for {folder}"
        if free < FULL:
            found += action("disk", free_space, "make room: mail is refused with 452 soon")
        elif free < LOW:
            found += hint("disk", free_space, "make room before it is urgent")
        else:
            found += ok("disk", free_space)
    return found


def _folders(settings: Settings) -> list[Path]:
    url = environment_factory.url_of(settings)
    folders = [settings.data]
    if url.get_backend_name() == "sqlite" and url.database:
        folders.append(Path(url.database).parent)
    urls = (settings.blobs, settings.cold_blobs)
    folders += [Path(url) for url in urls if url and "://" not in url]
    devices: dict[int, Path] = {}
    for folder in folders:
        devices.setdefault(_existing(folder).stat().st_dev, folder)
    return list(devices.values())


def _existing(folder: Path) -> Path:
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())


async def _store(settings: Settings) -> list[Finding]:
    url = environment_factory.url_of(settings)
    database_url = url.render_as_string(hide_password=True)
    if url.get_backend_name() == "sqlite" and not _there(url.database or ""):
        return hint("store", f"{database_url} is not there yet", "`merganser init` makes it")
    async with environment_factory.database(settings) as store:
        try:
            with environment_factory.reached(settings):
                missing = await lacking(store)
                version = await _version(store)
        except Trouble as trouble:
            return action("store", trouble.message, f"start it, or set {PREFIX}STORE right")
    if missing:
        return action(
            "store", f"{database_url} lacks {len(missing)} migrations", "run `merganser init`"
        )
    return ok("store", f"{database_url} is up to date{version}")


async def _vault(settings: Settings) -> list[Finding]:
    """Check that the key file exists, is private, and has all keys that the database needs."""
    path, fingerprints = key_file.path_of(settings), await _needed(settings)
    if not path.exists() and not fingerprints:
        return hint("vault", f"{path} is not there yet", "`merganser init` makes it")
    try:
        lacking = key_file.lacking(path, fingerprints)
    except Trouble as trouble:
        return action("vault", trouble.message, "bring the file back, or set its rights right")
    if lacking:
        todo = "bring back the file that has them: the secrets of users lie under them"
        return action("vault", f"{path} has not the keys {' '.join(lacking)}", todo)
    return ok("vault", f"{path} has all keys of the store")


async def _seals(settings: Settings) -> list[Finding]:
    """Check that each ARC key can be used."""
    if settings.arc_keys is None:
        return []
    try:
        there = arc_keys.names(settings.arc_keys)
    except Trouble as trouble:
        return action("seals", trouble.message, "make the key anew, or set its rights right")
    if not there:
        todo = "make one by `merganser domain arc-key`"
        return hint("seals", f"no key in {settings.arc_keys}", todo)
    return ok("seals", f"keys in {settings.arc_keys}: {len(there)}")


async def _needed(settings: Settings) -> dict[str, str]:
    """Load the fingerprints of the keys that the database needs, by key name.

    Returns none if the database can't be read, which its own check reports.
    """
    url = environment_factory.url_of(settings)
    if url.get_backend_name() == "sqlite" and not _there(url.database or ""):
        return {}
    async with environment_factory.database(settings) as store:
        try:
            with environment_factory.reached(settings):
                return await key_file.proofs(store)
        except Trouble:
            return {}  # the check of the database reports why


def _there(path: str) -> bool:
    return Path(path).exists()


async def _version(store: Database) -> str:
    if store.dialect == "sqlite":
        return ""
    async with store.engine.connect() as connection:
        return f" (PostgreSQL {(await connection.execute(text('SHOW server_version'))).scalar()})"


async def _blobs(settings: Settings) -> list[Finding]:
    found = await _large("blobs", settings.blobs, "BLOBS")
    if settings.cold_blobs is not None:
        found += await _large("cold blobs", settings.cold_blobs, "COLD_BLOBS")
    return found


async def _large(what: str, url: str, setting: str) -> list[Finding]:
    if "://" not in url and not _there(url):
        return hint(what, f"{url} is not there yet", "`merganser init` makes it")
    store = environment_factory.store_at(url, f"{PREFIX}{setting}")
    name = "00/merganser-doctor"
    try:
        await store.put(name, b"looked")
        read = await store.get(name)
        await store.delete([name])
    except Exception as problem:  # noqa: BLE001 - each error of the object store's client is a finding
        text = f"cannot write there: {problem}".splitlines()[0]
        return action(what, text, f"give us the right to, or set {PREFIX}{setting}")
    finally:
        await store.close()
    if read != b"looked":
        return action(what, "what was written came back otherwise", "check disk and bucket")
    return ok(what, f"{url.partition('?')[0]} can be written and read")


async def _ports(settings: Settings) -> list[Finding]:
    holder = store_lock.holder_of(settings.store)
    found: list[Finding] = []
    for name, setting in sockets.listen_addresses(settings).items():
        subject = f"{name} port"
        try:
            for connection in sockets.bind_sockets(name, setting):
                connection.close()
        except Trouble as trouble:
            greeting = await asyncio.to_thread(_greeting, name, setting)
            if greeting:
                served = f" by our server (pid {holder})" if holder else ""
                found += ok(subject, f"{setting} is served{served}")
            else:
                todo = f"stop who has it, or set {PREFIX}{name}"
                found += action(subject, trouble.message, todo)
        else:
            found += ok(subject, f"{setting} is free")
    for name in sockets.exposed_settings(settings):
        todo = "see that a firewall or proxy stands before it"
        found += hint(f"{name} port", "other machines can reach it", todo)
    return found


def _greeting(name: str, setting: str) -> bool:
    """True if a listener of Merganser answers at the address."""
    host, port = sockets.split_host_port(setting)
    try:
        with socket.create_connection((host, port), PATIENCE) as connection:
            connection.settimeout(PATIENCE)
            if name == "HTTP":
                connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                return connection.recv(100).startswith(b"HTTP/1.1 200")
            if name == "ACME_HTTP":
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return connection.recv(100).startswith(b"HTTP/1.1 404")
            if name == "SUBMISSIONS":
                return True  # its greeting comes after the TLS handshake
            return (b" LMTP" if name == "LMTP" else b" ESMTP") in connection.recv(200)
    except OSError:
        return False


async def _names(settings: Settings) -> list[Finding]:
    if settings.hostname == "localhost":
        todo = f"set {PREFIX}HOSTNAME to this machine's name before mail leaves it"
        return hint("DNS", "the host has no name of its own", todo)
    resolver = resolver_at(settings.dns_resolver)
    answers = [await _looked_up(resolver, settings.hostname, ("A", "AAAA"))]
    answers += await asyncio.gather(
        *(_looked_up(resolver, name, ("MX", "A")) for name in await _domains(settings))
    )
    return answers


async def _domains(settings: Settings) -> list[str]:
    """Load the names of active domains.

    Returns none if the database can't be read, which its own check reports.
    """
    async with environment_factory.database(settings) as store:
        try:
            with environment_factory.reached(settings):
                statement = select(col(Domain.name)).where(col(Domain.active)).limit(DOMAINS)
                return [row.name for row in await store.read(statement)]
        except Trouble:
            return []  # the check of the database reports why


async def _looked_up(resolver: Resolver, name: str, kinds: tuple[str, ...]) -> Finding:
    if name.rpartition(".")[2] in RESERVED:
        return Finding("DNS", Verdict.OK, f"{name} is a name for trials, which nobody looks up")
    offline = ""
    for kind in kinds:
        try:
            answer = await resolver.resolve(f"{ascii_domain(name)}.", kind, lifetime=PATIENCE)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            continue
        except (dns.exception.DNSException, OSError, UnicodeError) as problem:
            offline = type(problem).__name__
        else:
            first = " ".join(str(next(iter(answer))).split())
            return Finding("DNS", Verdict.OK, f"{name} has {kind} {first}")
    if offline:
        todo = "look again when this machine reaches a name server"
        return Finding("DNS", Verdict.HINT, f"no answer for {name} ({offline})", todo)
    todo = f"publish a record {' or '.join(kinds)} for {name}, or mail does not find us"
    return Finding("DNS", Verdict.ACTION, f"{name} has neither {' nor '.join(kinds)}", todo)
