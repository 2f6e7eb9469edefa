"""What is right and wrong with this installation, and what to do about it."""

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

PATIENCE = 3.0  # seconds for an answer of DNS
DOMAINS = 20  # looked up at most
LOW = 1 << 30  # bytes free below which to warn
FULL = 200 << 20  # bytes free below which to act
RESERVED = ("example", "test", "invalid", "localhost")  # RFC 6761
PUBLIC = 0o077  # permissions of others
RECENT = datetime(2025, 1, 1, tzinfo=UTC)  # no clock that is right shows less


Check = Callable[[Settings], Awaitable[list[Finding]]]


async def examine(settings: Settings) -> list[Finding]:
    """Look at everything; a check that fails says so, and the others go on."""
    checks: tuple[Check, ...] = (
        _programs, _clock, _folder, _secret, _disk, _store, _vault, _seals, certified,
        _blobs, _ports, _names,
    )  # fmt: skip
    found: list[Finding] = []
    try:
        environment_factory.url_of(settings)
    except Trouble as trouble:
        return action("store", trouble.message, f"set {PREFIX}STORE right")
    for check in checks:
        try:
            found += await check(settings)
        except Trouble as trouble:
            found += action(check.__name__.strip("_"), trouble.message, "see there")
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
        said = f"{rounded(free)} free for {folder}"
        if free < FULL:
            found += action("disk", said, "make room: mail is refused with 452 soon")
        elif free < LOW:
            found += hint("disk", said, "make room before it is urgent")
        else:
            found += ok("disk", said)
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
    where = url.render_as_string(hide_password=True)
    if url.get_backend_name() == "sqlite" and not _there(url.database or ""):
        return hint("store", f"{where} is not there yet", "`merganser init` makes it")
    async with environment_factory.database(settings) as store:
        try:
            with environment_factory.reached(settings):
                missing = await lacking(store)
                version = await _version(store)
        except Trouble as trouble:
            return action("store", trouble.message, f"start it, or set {PREFIX}STORE right")
    if missing:
        return action("store", f"{where} lacks {len(missing)} migrations", "run `merganser init`")
    return ok("store", f"{where} is up to date{version}")


async def _vault(settings: Settings) -> list[Finding]:
    """The keys of sealed secrets: whether they are there, ours alone, and the right ones."""
    path, needed = key_file.path_of(settings), await _needed(settings)
    if not path.exists() and not needed:
        return hint("vault", f"{path} is not there yet", "`merganser init` makes it")
    try:
        lacking = key_file.lacking(path, needed)
    except Trouble as trouble:
        return action("vault", trouble.message, "bring the file back, or set its rights right")
    if lacking:
        todo = "bring back the file that has them: the secrets of users lie under them"
        return action("vault", f"{path} has not the keys {' '.join(lacking)}", todo)
    return ok("vault", f"{path} has all keys of the store")


async def _seals(settings: Settings) -> list[Finding]:
    """The keys that seal what is sent on: whether each can be used."""
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
    """Proofs of the keys that the store needs, by name; none where it does not say."""
    url = environment_factory.url_of(settings)
    if url.get_backend_name() == "sqlite" and not _there(url.database or ""):
        return {}
    async with environment_factory.database(settings) as store:
        try:
            with environment_factory.reached(settings):
                return await key_file.proofs(store)
        except Trouble:
            return {}  # the check of the store says why


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
    except Exception as problem:  # noqa: BLE001 - whatever a bucket's client raises is the finding
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
            for one in sockets.bind_sockets(name, setting):
                one.close()
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
    """Whether one of ours answers there."""
    host, port = sockets.split_host_port(setting)
    try:
        with socket.create_connection((host, port), PATIENCE) as one:
            one.settimeout(PATIENCE)
            if name == "HTTP":
                one.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                return one.recv(100).startswith(b"HTTP/1.1 200")
            if name == "ACME_HTTP":
                one.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return one.recv(100).startswith(b"HTTP/1.1 404")
            if name == "SUBMISSIONS":
                return True  # it speaks after TLS has begun
            return (b" LMTP" if name == "LMTP" else b" ESMTP") in one.recv(200)
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
    """The domains we serve; none where the store does not say."""
    async with environment_factory.database(settings) as store:
        try:
            with environment_factory.reached(settings):
                asked = select(col(Domain.name)).where(col(Domain.active)).limit(DOMAINS)
                return [row.name for row in await store.read(asked)]
        except Trouble:
            return []  # the check of the store says why


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
