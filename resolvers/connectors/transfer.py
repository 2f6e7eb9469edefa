"""Export connectors to files and import them; passwords are encrypted with a passphrase."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

import orjson
from sqlalchemy import select
from sqlmodel import col

from mail.archives.json_lines import Account
from mail.archives.secret_encryption import Lock, Locked
from mail.connectors.remote_server import Failure
from models.connectors import Connector, Protocol, Security
from models.errors import Forbidden, Invalid, LimitReached, Refused
from models.runtime.environment import World
from models.store.columns import Picked, picked
from models.users.roles import UserPermission
from resolvers.access import own
from resolvers.connectors import credentials
from resolvers.connectors import mutations as connector_mutations
from resolvers.connectors import validation as connector_validation
from resolvers.connectors.options import OptionName
from resolvers.context import Context, Needs
from resolvers.transfer.import_writer import Import

FIELDS: Mapping[str, tuple[str, type]] = {  # name in the file: column and type
    "name": ("name", str),
    "protocol": ("protocol", str),
    "host": ("host", str),
    "port": ("port", int),
    "security": ("security", str),
    "authMechanism": ("mechanism", str),
    "username": ("username", str),
    "oauth": ("oauth", dict),
    "targetDomain": ("target_domain", str),
    "targetFolder": ("target_folder", str),
    "interval": ("interval", timedelta),
    "maxAge": ("max_age", timedelta),
    "maxBytesPerSecond": ("max_bytes_per_second", int),
    "exclude": ("exclude", str),
    "folderRewrites": ("folder_rewrites", list),
    "autoMapFolders": ("auto_map_folders", bool),
    "subscribeAll": ("subscribe_all", bool),
    "skipCrossDuplicates": ("skip_cross_duplicates", bool),
    "removeDuplicates": ("remove_duplicates", bool),
    "sourceRetention": ("source_retention", timedelta),
    "mirrorDeletes": ("mirror_deletes", bool),
    "remoteTimeout": ("remote_timeout", timedelta),
    "localTimeout": ("local_timeout", timedelta),
    "customOptions": ("custom_options", list),
    "spamCheck": ("spam_check", bool),
    "virusCheck": ("virus_check", bool),
    "applyFilters": ("apply_filters", bool),
    "active": ("active", bool),
}
OAUTH = {"tokenUrl": "token_url", "clientId": "client_id", "scope": "scope"}
NEEDED = ("protocol", "host", "security", "authMechanism", "username")
BOUND = ("protocol", "host", "port", "security", "authMechanism", "username", "oauth")
LARGEST = 1 << 40  # in a file
OFF = "it is switched off until one is set"
ALLOWED = Needs(user_permission=UserPermission.SYNCJOBS)

Entry = Mapping[str, Any]


async def exported(ctx: Context, user_id: int, passphrase: str | None) -> dict[str, Any]:
    """Return the connectors of an account and the lock of their passwords, as written to a file.

    Without a passphrase there are no passwords. A password that can't be decrypted is left out.
    """
    mine = col(Connector.user_id) == user_id, col(Connector.once).is_(False)
    asked = select(*picked(Connector)).where(*mine).order_by(col(Connector.id))
    rows = await ctx.read(asked)
    found = {"connectors": [_entry(row) for row in rows]}
    if passphrase is None or not rows:
        return found
    lock = await asyncio.to_thread(Lock.fresh, passphrase)
    for row, entry in zip(rows, found["connectors"], strict=True):
        known = _stored(ctx.world, row)
        if known.get("password"):
            told = {name: known.get(name) for name in ("password", "client")}
            entry["secret"] = lock.seal(orjson.dumps(told).decode(), _place(entry))
    return {**found, "connectorLock": lock.record()}


def _entry(row: Picked) -> dict[str, Any]:
    entry = {name: getattr(row, column) for name, (column, _) in FIELDS.items()}
    if row.oauth:
        entry["oauth"] = {name: row.oauth.get(column) for name, column in OAUTH.items()}
    return {name: value for name, value in entry.items() if value is not None}


def _place(entry: Entry) -> bytes:
    """Return the fields that an encrypted password is bound to."""
    return orjson.dumps([entry.get(name) for name in BOUND], option=orjson.OPT_SORT_KEYS)


def _stored(world: World, row: Picked) -> dict[str, Any]:
    try:
        return credentials.opened(world, row.id, row.secret)
    except Failure:
        return {}


@dataclass(frozen=True, slots=True)
class _Word:
    """A password and client secret of a file, or the reason why there is none."""

    password: str | None = None
    client: str | None = None
    lacking: str = ""


async def bring(work: Import, account: Account, passphrase: str | None) -> None:
    """Create the connectors of a file, unless the account has them.

    Those without a password are switched off. Problems are added to the outcome of the import.
    """
    lock, lacking = None, "no passphrase was given"
    if account.connectors and account.lock and passphrase is not None:
        try:
            lock = await asyncio.to_thread(Lock.told, account.lock, passphrase)
        except Locked as problem:
            lacking = f"its lock was {problem}"
    for entry in account.connectors:
        word = _word(entry, lock, lacking)
        name = str(entry.get("name") or entry.get("host") or "")[:100]
        try:
            work.ctx.viewer.require(ALLOWED)
            if not await _bring(work.ctx, entry, word):
                work.outcome.refuse(f"password of connector {name}", f"{word.lacking}: {OFF}")
        except Refused as problem:
            work.outcome.refuse(f"connector {name}", str(problem))
            if isinstance(problem, LimitReached | Forbidden):
                break


def _word(entry: Entry, lock: Lock | None, lacking: str) -> _Word:
    if "secret" not in entry:
        return _Word(lacking="the archive has none")
    if lock is None:
        return _Word(lacking=lacking)
    try:
        known = orjson.loads(lock.open(entry["secret"], _place(entry)))
        if isinstance(known["password"], str):
            return _Word(known["password"], known["client"])
    except (Locked, orjson.JSONDecodeError, KeyError, TypeError):
        pass
    return _Word(lacking="the passphrase does not open it")


async def _bring(ctx: Context, entry: Entry, word: _Word) -> bool:
    """Create a connector, or add the password to an existing one; True if it has a password now.

    Raises Invalid, LimitReached or Forbidden.
    """
    given = _given(entry)
    values = connector_validation.checked(given, {}, ctx.world.options)
    if given.get("oauth") and word.client:
        given["oauth"] = {**given["oauth"], "client_secret": word.client}
    there = await _there(ctx, {**given, **values})
    if there is None:
        active = given.get("active", True) and word.password is not None
        await connector_mutations.create(ctx, None, {**given, "active": active}, word.password)
        return word.password is not None
    if _stored(ctx.world, there).get("password"):
        return True
    if word.password is None or _place(_entry(there)) != _place(entry):
        return False
    again: dict[str, Any] = {name: given[name] for name in ("active", "oauth") if name in given}
    await connector_mutations.change(ctx, [there.id], again, word.password)
    return True


async def _there(ctx: Context, values: Entry) -> Picked | None:
    same = [col(getattr(Connector, name)) == values[name]
            for name in ("protocol", "host", "port", "username")]  # fmt: skip
    mine = col(Connector.user_id) == own(ctx), col(Connector.once).is_(False)
    rows = await ctx.read(select(*picked(Connector)).where(*mine, *same))
    return next(iter(rows), None)


def _given(entry: Entry) -> dict[str, Any]:
    """Return the columns of a connector in a file.

    Raises Invalid if a field is missing or wrong.
    """
    given: dict[str, Any] = {}
    for name, (column, kind) in FIELDS.items():
        if (value := entry.get(name)) is None:
            if name in NEEDED:
                raise Invalid("it is missing", constraint="required", path=[name])
            continue
        number = kind in (int, timedelta)
        right = isinstance(value, int if number else kind)
        if not right or (number and (isinstance(value, bool) or not 0 <= value < LARGEST)):
            raise Invalid("not what it must be", constraint="type", path=[name])
        given[column] = timedelta(seconds=value) if kind is timedelta else value
    given["protocol"] = _one_of(Protocol, given["protocol"], "protocol")
    given["security"] = _one_of(Security, given["security"], "security")
    if oauth := given.get("oauth"):
        _check_texts(oauth, ("tokenUrl", "clientId"), ("scope",), "oauth")
        given["oauth"] = {column: oauth.get(name) for name, column in OAUTH.items()}
    for one in given.get("folder_rewrites", ()):
        _check_texts(one, ("pattern", "replacement"), (), "folderRewrites")
    for one in given.get("custom_options", ()):
        _check_texts(one, ("name",), ("value",), "customOptions")
        _one_of(OptionName, one["name"], "customOptions")
    return given


def _one_of(kind: type[StrEnum], value: str, path: str) -> StrEnum:
    try:
        return kind(value)
    except ValueError:
        text = f"one of {', '.join(kind)}"
        raise Invalid(text, constraint="unknown", path=[path]) from None


def _check_texts(one: Any, needed: tuple[str, ...], others: tuple[str, ...], path: str) -> None:
    """Raise Invalid if this is no object, lacks a text, or has other fields."""
    right = isinstance(one, dict) and set(one) <= {*needed, *others}
    if right:
        right = all(isinstance(one.get(name), str) for name in needed)
        right &= all(isinstance(one.get(name), str | None) for name in others)
    if not right:
        raise Invalid("not what it must be", constraint="type", path=[path])
