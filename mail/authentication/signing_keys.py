"""DKIM keys of domains, read from the database for each message so that no key is used too long."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any

import idna
from sqlalchemy import String, bindparam, select
from sqlmodel import col

from mail.addresses.address_syntax import ascii_domain, normal_domain
from mail.authentication import private_keys
from mail.authentication.private_keys import PrivateKey, Signer, Unusable
from mail.network.dns_resolver import records
from models.domains.dkim_keys import ALL, DkimKey, DkimKeyState
from models.observability import metrics
from models.runtime.clock_steps import is_ahead
from models.runtime.environment import World
from models.runtime.secret_box import Sealed
from models.store.prepared_statements import Prepared

log = logging.getLogger(__name__)

KEPT = 500  # decrypted and parsed keys
LOOK = 3.0  # seconds for the DNS record of a key for all domains
SEEN, UNSEEN = timedelta(hours=1), timedelta(minutes=5)  # until the record is queried again
ROOM = 300  # bytes of that in the cache

CLOSED = metrics.counter("merganser_dkim_unusable", "Keys that could not be opened to sign.")

_COLUMNS: tuple[Any, ...] = (
    col(DkimKey.id),
    col(DkimKey.domain),
    col(DkimKey.selector),
    col(DkimKey.private),
)
_ACTIVE = Prepared(
    select(*_COLUMNS)
    .where(
        (col(DkimKey.domain) == bindparam("domain", type_=String)) | (col(DkimKey.domain) == ALL),
        col(DkimKey.state) == DkimKeyState.ACTIVE,
    )
    .order_by(col(DkimKey.id))
)


def place_of(key: int) -> str:
    """The name that the secret of a key is encrypted for."""
    return f"dkim:{key}"


async def signers(world: World, domain: str) -> list[Signer]:
    """Load the active keys of a domain, else the keys for all domains.

    A key for all domains is used only if the domain has published its record. Returns no keys
    for a name that can't have signatures.
    """
    try:
        name, wire = normal_domain(domain), ascii_domain(domain).lower()
    except (idna.IDNAError, ValueError):
        return []
    rows = await world.database.find(_ACTIVE, {"domain": name})
    own = [row for row in rows if row.domain == name]
    if own:
        return await _opened(world, own, wire)
    return [each for each in await _opened(world, rows, wire) if await _published(world, each)]


async def of_host(world: World) -> list[Signer]:
    """Load the keys of the domain of this host: of its own name, or of the next domain above."""
    labels = world.options.hostname.split(".")
    for at in range(len(labels) - 1):
        name = ".".join(labels[at:])
        rows = await world.database.find(_ACTIVE, {"domain": normal_domain(name)})
        if own := [row for row in rows if row.domain != ALL]:
            return await _opened(world, own, name.lower())
    return []


async def _opened(world: World, rows: Sequence[Any], domain: str) -> list[Signer]:
    found = []
    for row in rows:
        try:
            pem = world.vault.open(row.private, place_of(row.id))
            found.append(Signer(domain, row.selector, await asyncio.to_thread(_read, pem)))
        except (Sealed, Unusable):
            CLOSED.add()
            facts = {"domain": row.domain, "selector": row.selector}
            log.error("a key that signs cannot be opened", extra=facts)
    return found


@lru_cache(maxsize=KEPT)
def _read(pem: str) -> PrivateKey:
    return private_keys.read(pem, ours=True)


async def _published(world: World, signer: Signer) -> bool:
    """True if the domain has published the record of a key for all; also if DNS does not answer."""
    name, now = f"{signer.selector}._domainkey.{signer.domain}", world.now()
    known = world.shelf.get(("dkim record", name))
    if known is not None and is_ahead(known[1], now, SEEN):
        return bool(known[0])
    there = await _there(world, name, signer.key.public())
    if there is None:
        return True
    until = now + (SEEN if there else UNSEEN)
    world.shelf.put(("dkim record", name), (there, until), ROOM)
    return there


async def _there(world: World, name: str, public: str) -> bool | None:
    """True if DNS has this key at a name; None if DNS does not answer."""
    answer = await records(world.options.dns_resolver, name, "TXT", LOOK)
    if answer is None:
        return None
    texts = (b"".join(each.strings).decode(errors="replace") for each in answer)
    return any(private_keys.is_record(text, public) for text in texts)
