"""The checks of `merganser doctor`: versions, files, database, ports, DNS and backups."""

import asyncio
import os
import socket
import sqlite3
import stat
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import dns.exception
import dns.resolver
from dns.asyncresolver import Resolver
from sqlalchemy import select
from sqlmodel import col

from mail.addresses.address_syntax import ascii_domain
from mail.network.dns_resolver import create_resolver as resolver_at
from merganser.doctor.backups import check_backups
from merganser.doctor.certificates import check_certificates
from merganser.doctor.clock import check_clock
from merganser.doctor.disk import check_disk_space
from merganser.doctor.findings import (
    CheckName,
    Finding,
    Verdict,
    action_finding,
    hint_finding,
    ok_finding,
)
from merganser.doctor.postgres import check_postgres
from merganser.doctor.reverse_dns import (
    NETWORK_TIMEOUT,
    RESERVED_TOP_LEVEL_DOMAINS,
    check_reverse_dns,
)
from merganser.errors import CommandError
from merganser.server import arc_keys, environment_factory, key_file, sockets
from merganser.server.store import store_lock
from merganser.server.store.migration import can_older_servers_go_on, load_unapplied_revisions
from merganser.settings.settings import PREFIX, Settings
from models.domains.tables import Domain

MIN_SQLITE_VERSION = (3, 39)  # the first one with IS DISTINCT FROM, which triggers use
MAX_DOMAINS = 20  # checked in DNS
OTHERS_PERMISSIONS = 0o077


Check = Callable[[Settings], Awaitable[list[Finding]]]


async def run_checks(settings: Settings) -> list[Finding]:
    """Run all checks and return their findings. A check that raises becomes a finding."""
    checks: dict[CheckName, Check] = {
        CheckName.PROGRAMS: _check_versions,
        CheckName.CLOCK: check_clock,
        CheckName.DATA_FOLDER: _check_data_folder,
        CheckName.SECRET: _check_secret_file,
        CheckName.DISK: check_disk_space,
        CheckName.DATABASE: _check_database,
        CheckName.POSTGRES: check_postgres,
        CheckName.KEY_FILE: _check_key_file,
        CheckName.ARC_KEYS: _check_arc_keys,
        CheckName.CERTIFICATE: check_certificates,
        CheckName.OBJECT_STORE: _check_object_stores,
        CheckName.PORT: _check_ports,
        CheckName.DNS: _check_dns,
        CheckName.REVERSE_DNS: check_reverse_dns,
        CheckName.BACKUP: check_backups,
    }
    findings: list[Finding] = []
    try:
        environment_factory.checked_database_url_without_password(settings)
    except CommandError as trouble:
        return action_finding(CheckName.DATABASE, trouble.message, f"correct {PREFIX}DATABASE_URL")
    for name, check in checks.items():
        try:
            findings += await check(settings)
        except CommandError as trouble:
            findings += action_finding(
                name, trouble.message, "correct this, and run the check again"
            )
        except OSError as problem:  # such as a folder above that this user can't search
            findings += action_finding(
                name, str(problem), "correct the permissions, and run the check again"
            )
    return findings


async def _check_versions(_settings: Settings) -> list[Finding]:
    versions = f"Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}"
    if sqlite3.sqlite_version_info < MIN_SQLITE_VERSION:
        minimum = ".".join(map(str, MIN_SQLITE_VERSION))
        return action_finding(
            CheckName.PROGRAMS, versions, f"use a Python with SQLite {minimum} or newer"
        )
    return ok_finding(CheckName.PROGRAMS, versions)


async def _check_data_folder(settings: Settings) -> list[Finding]:
    data = settings.data
    if not data.exists():
        return hint_finding(
            CheckName.DATA_FOLDER, f"{data} does not exist yet", "`merganser init` creates it"
        )
    if not os.access(data, os.R_OK | os.W_OK | os.X_OK):
        return action_finding(
            CheckName.DATA_FOLDER,
            f"this user can't read and write {data}",
            "run this command as the user of the server, or give the folder to this user by chown",
        )
    mode = stat.S_IMODE(data.stat().st_mode)
    if mode & OTHERS_PERMISSIONS:
        return action_finding(
            CheckName.DATA_FOLDER, f"other users can read {data} ({mode:o})", f"chmod 700 {data}"
        )
    return ok_finding(CheckName.DATA_FOLDER, str(data.absolute()))


async def _check_secret_file(settings: Settings) -> list[Finding]:
    if settings.signing_secret:
        return ok_finding(CheckName.SECRET, f"from {PREFIX}SIGNING_SECRET")
    path = settings.data / "secret"
    if not path.exists():
        return hint_finding(
            CheckName.SECRET, f"{path} does not exist yet", "`merganser init` creates it"
        )
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & OTHERS_PERMISSIONS:
        return action_finding(
            CheckName.SECRET, f"other users can read {path} ({mode:o})", f"chmod 600 {path}"
        )
    environment_factory.load_or_create_signing_secret(settings)
    return ok_finding(CheckName.SECRET, str(path))


async def _check_database(settings: Settings) -> list[Finding]:
    url = environment_factory.checked_database_url_without_password(settings)
    database_url = environment_factory.checked_database_location(settings)
    if url.get_backend_name() == "sqlite" and not _path_exists(url.database or ""):
        return hint_finding(
            CheckName.DATABASE, f"{database_url} does not exist yet", "`merganser init` creates it"
        )
    async with environment_factory.open_database(settings) as store:
        try:
            with environment_factory.database_errors_as_command_errors(settings):
                missing = await load_unapplied_revisions(store)
                is_rolling = bool(missing) and await can_older_servers_go_on(store, missing)
        except CommandError as trouble:
            return action_finding(
                CheckName.DATABASE, trouble.message, f"start it, or correct {PREFIX}DATABASE_URL"
            )
    if missing:
        return action_finding(
            CheckName.DATABASE,
            f"{database_url} lacks {len(missing)} migrations",
            "run `merganser init`; servers of the older version can go on"
            if is_rolling
            else "stop all servers, then run `merganser init`",
        )
    return ok_finding(CheckName.DATABASE, f"{database_url} is up to date")


async def _check_key_file(settings: Settings) -> list[Finding]:
    """Check that the key file exists, is private, and has all keys that the database needs."""
    path = key_file.key_file_path(settings)
    fingerprints = await _load_key_fingerprints_if_readable(settings)
    if not path.exists() and not fingerprints:
        return hint_finding(
            CheckName.KEY_FILE, f"{path} does not exist yet", "`merganser init` creates it"
        )
    try:
        lacking = key_file.missing_or_different_key_names(path, fingerprints)
    except CommandError as trouble:
        return action_finding(
            CheckName.KEY_FILE, trouble.message, "restore the file, or correct its permissions"
        )
    if lacking:
        next_step = "restore the file with the keys: secrets of users are encrypted with them"
        return action_finding(
            CheckName.KEY_FILE, f"{path} does not have the keys {' '.join(lacking)}", next_step
        )
    return ok_finding(CheckName.KEY_FILE, f"{path} has all keys of the database")


async def _check_arc_keys(settings: Settings) -> list[Finding]:
    """Check that each ARC key can be used."""
    if settings.arc_keys_folder is None:
        return []
    try:
        arc_key_states = arc_keys.check_arc_keys_and_return_dns_names(settings.arc_keys_folder)
    except CommandError as trouble:
        return action_finding(
            CheckName.ARC_KEYS, trouble.message, "create the key again, or correct its permissions"
        )
    if not arc_key_states:
        next_step = "create one with `merganser domain arc-key`"
        return hint_finding(CheckName.ARC_KEYS, f"no key in {settings.arc_keys_folder}", next_step)
    return ok_finding(
        CheckName.ARC_KEYS, f"keys in {settings.arc_keys_folder}: {len(arc_key_states)}"
    )


async def _load_key_fingerprints_if_readable(settings: Settings) -> dict[str, str]:
    """Load the fingerprints of the keys that the database needs, by key name.

    Returns none if the database can't be read, which its own check reports.
    """
    url = environment_factory.checked_database_url_without_password(settings)
    if url.get_backend_name() == "sqlite" and not _path_exists(url.database or ""):
        return {}
    async with environment_factory.open_database(settings) as store:
        try:
            with environment_factory.database_errors_as_command_errors(settings):
                return await key_file.load_key_fingerprints(store)
        except CommandError:
            return {}  # the check of the database reports why


def _path_exists(path: str) -> bool:
    return Path(path).exists()


async def _check_object_stores(settings: Settings) -> list[Finding]:
    findings = await _check_object_store(
        CheckName.OBJECT_STORE, settings.object_store_url, "OBJECT_STORE_URL"
    )
    if settings.cold_object_store_url is not None:
        findings += await _check_object_store(
            f"cold {CheckName.OBJECT_STORE}",
            settings.cold_object_store_url,
            "COLD_OBJECT_STORE_URL",
        )
    return findings


async def _check_object_store(subject: str, url: str, setting_name: str) -> list[Finding]:
    if "://" not in url and not _path_exists(url):
        return hint_finding(subject, f"{url} does not exist yet", "`merganser init` creates it")
    store = environment_factory.open_object_store_of_setting(url, f"{PREFIX}{setting_name}")
    name = "00/merganser-doctor"
    try:
        await store.put(name, b"looked")
        read_data = await store.get(name)
        await store.delete([name])
    except Exception as problem:  # noqa: BLE001 - each error of the object store's client is a finding
        text = f"cannot write to it: {problem}".splitlines()[0]
        return action_finding(subject, text, f"grant the permission, or set {PREFIX}{setting_name}")
    finally:
        await store.close()
    if read_data != b"looked":
        return action_finding(
            subject, "the written bytes differ when read", "check disk and bucket"
        )
    return ok_finding(subject, f"{url.partition('?')[0]} can be written and read")


async def _check_ports(settings: Settings) -> list[Finding]:
    server_pid = store_lock.sqlite_server_pid(settings.database_url)
    findings: list[Finding] = []
    for name, setting in sockets.listen_addresses(settings).items():
        subject = f"{name} {CheckName.PORT}"
        try:
            for connection in sockets.open_listening_sockets(name, setting):
                connection.close()
        except CommandError as trouble:
            greeting = await asyncio.to_thread(_answers_like_merganser, name, setting)
            if greeting:
                served = f" by this server (pid {server_pid})" if server_pid else ""
                findings += ok_finding(subject, f"{setting} is in use{served}")
            else:
                next_step = f"stop the process that uses it, or set {PREFIX}{name}_LISTEN"
                findings += action_finding(subject, trouble.message, next_step)
        else:
            findings += ok_finding(subject, f"{setting} is free")
    for name in sockets.exposed_listener_names(settings):
        next_step = "make sure that a firewall or proxy protects it"
        findings += hint_finding(
            f"{name} {CheckName.PORT}", "other machines can reach it", next_step
        )
    return findings


def _answers_like_merganser(listener_name: str, address: str) -> bool:
    """True if the answer at the address has the form of the answer of this listener.

    Other mail servers answer in the same form. For SUBMISSION_TLS, each open port is accepted.
    """
    host, port = sockets.split_host_port(address)
    try:
        with socket.create_connection((host, port), NETWORK_TIMEOUT) as connection:
            connection.settimeout(NETWORK_TIMEOUT)
            if listener_name == "HTTP":
                connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                return connection.recv(100).startswith(b"HTTP/1.1 200")
            if listener_name == "ACME_HTTP":
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return connection.recv(100).startswith(b"HTTP/1.1 404")
            if listener_name == "SUBMISSION_TLS":
                return True  # its greeting comes after the TLS handshake
            return (b" LMTP" if listener_name == "LMTP" else b" ESMTP") in connection.recv(200)
    except OSError:
        return False


async def _check_dns(settings: Settings) -> list[Finding]:
    if settings.hostname == "localhost":
        next_step = f"set {PREFIX}HOSTNAME to the name of this machine before it sends mail"
        return hint_finding(CheckName.DNS, "the host name is not configured", next_step)
    resolver = resolver_at(settings.dns_resolver)
    answers = [await _check_any_dns_record_exists(resolver, settings.hostname, ("A", "AAAA"))]
    answers += await asyncio.gather(
        *(
            _check_any_dns_record_exists(resolver, name, ("MX", "A"))
            for name in await _load_domain_names_to_check_if_readable(settings)
        )
    )
    return answers


async def _load_domain_names_to_check_if_readable(settings: Settings) -> list[str]:
    """Load the names of active domains.

    Returns none if the database can't be read, which its own check reports.
    """
    async with environment_factory.open_database(settings) as store:
        try:
            with environment_factory.database_errors_as_command_errors(settings):
                statement = select(col(Domain.name)).where(col(Domain.active)).limit(MAX_DOMAINS)
                return [row.name for row in await store.read(statement)]
        except CommandError:
            return []  # the check of the database reports why


async def _check_any_dns_record_exists(
    resolver: Resolver, domain: str, record_types: tuple[str, ...]
) -> Finding:
    if domain.rpartition(".")[2] in RESERVED_TOP_LEVEL_DOMAINS:
        return Finding(
            CheckName.DNS, Verdict.OK, f"{domain} is a reserved name, which is not looked up"
        )
    offline = ""
    for kind in record_types:
        try:
            answer = await resolver.resolve(
                f"{ascii_domain(domain)}.", kind, lifetime=NETWORK_TIMEOUT
            )
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            continue
        except (dns.exception.DNSException, OSError, UnicodeError) as problem:
            offline = type(problem).__name__
        else:
            first = " ".join(str(next(iter(answer))).split())
            return Finding(CheckName.DNS, Verdict.OK, f"{domain} has {kind} {first}")
    if offline:
        next_step = "run the check again when a name server is reachable"
        return Finding(
            CheckName.DNS, Verdict.HINT, f"no response for {domain} ({offline})", next_step
        )
    next_step = (
        f"publish a record {' or '.join(record_types)} for {domain}, or mail "
        "can't be delivered to this server"
    )
    return Finding(
        CheckName.DNS,
        Verdict.ACTION,
        f"{domain} has no {' and no '.join(record_types)} record",
        next_step,
    )
