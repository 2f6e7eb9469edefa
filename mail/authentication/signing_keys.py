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

from mail.addresses.address_syntax import ascii_domain, normalized_domain
from mail.authentication import private_keys
from mail.authentication.private_keys import DkimPrivateKey, DkimSigner, UnusableKey
from mail.network.dns_resolver import query_dns_records_or_none
from models.domains.dkim_keys import ALL_DOMAINS, DkimKey, DkimKeyState
from models.observability import metrics
from models.runtime.clock_steps import is_plausible_wait_running
from models.runtime.environment import Environment
from models.runtime.secret_box import DecryptionError
from models.store.prepared_statements import PreparedStatement

log = logging.getLogger(__name__)

PARSED_KEY_CACHE = 500  # decrypted and parsed keys
RECORD_TIMEOUT = 3.0  # seconds for the DNS record of a key for all domains
FOUND_TTL = timedelta(hours=1)  # until a record that was found is queried again
MISSING_TTL = timedelta(minutes=5)  # until a missing record is queried again
CACHE_ENTRY_SIZE = 300  # bytes of that in the cache

UNUSABLE_KEYS = metrics.counter(
    "merganser_dkim_keys_unusable", "DKIM keys that could not be decrypted."
)

_COLUMNS: tuple[Any, ...] = (
    col(DkimKey.id),
    col(DkimKey.domain),
    col(DkimKey.selector),
    col(DkimKey.private),
)
_SELECT_ACTIVE_KEYS = PreparedStatement(
    select(*_COLUMNS)
    .where(
        (col(DkimKey.domain) == bindparam("domain", type_=String))
        | (col(DkimKey.domain) == ALL_DOMAINS),
        col(DkimKey.state) == DkimKeyState.ACTIVE,
    )
    .order_by(col(DkimKey.id))
)


def secret_name(key_id: int) -> str:
    """The name that the secret of a key is encrypted for."""
    return f"dkim:{key_id}"


async def load_own_or_published_shared_signers(
    environment: Environment, domain: str
) -> list[DkimSigner]:
    """Load the active keys of a domain, else the keys for all domains.

    A key for all domains is used only if the domain has published its record. Returns no keys
    for a name that can't have signatures.
    """
    try:
        name, wire = normalized_domain(domain), ascii_domain(domain).lower()
    except (idna.IDNAError, ValueError):
        return []
    rows = await environment.database.read_prepared(_SELECT_ACTIVE_KEYS, {"domain": name})
    own_rows = [row for row in rows if row.domain == name]
    if own_rows:
        return await _signers_of_usable_keys(environment, own_rows, wire)
    return [
        signer
        for signer in await _signers_of_usable_keys(environment, rows, wire)
        if await _is_published_or_unknown(environment, signer)
    ]


async def load_signers_of_host_or_parent(environment: Environment) -> list[DkimSigner]:
    """Load the keys of the domain of this host: of its own name, or of the next domain above."""
    labels = environment.options.hostname.split(".")
    for at in range(len(labels) - 1):
        name = ".".join(labels[at:])
        rows = await environment.database.read_prepared(
            _SELECT_ACTIVE_KEYS, {"domain": normalized_domain(name)}
        )
        if own_rows := [row for row in rows if row.domain != ALL_DOMAINS]:
            return await _signers_of_usable_keys(environment, own_rows, name.lower())
    return []


async def _signers_of_usable_keys(
    environment: Environment, rows: Sequence[Any], domain: str
) -> list[DkimSigner]:
    """Return the signers of the keys that can be decrypted and parsed.

    Other keys are logged and counted. The DNS records of the keys are not checked.
    """
    signers = []
    for row in rows:
        try:
            pem = environment.secret_box.decrypt(row.private, secret_name(row.id))
            signers.append(
                DkimSigner(domain, row.selector, await asyncio.to_thread(_parse_stored_key, pem))
            )
        except (DecryptionError, UnusableKey):
            UNUSABLE_KEYS.add()
            facts = {"domain": row.domain, "selector": row.selector}
            log.error("A DKIM key can't be used", extra=facts)
    return signers


@lru_cache(maxsize=PARSED_KEY_CACHE)
def _parse_stored_key(pem: str) -> DkimPrivateKey:
    return private_keys.parse_dkim_private_key(pem, is_trusted=True)


async def _is_published_or_unknown(environment: Environment, signer: DkimSigner) -> bool:
    """True if the domain has published the record of a key for all; also if DNS does not answer."""
    name, now = f"{signer.selector}._domainkey.{signer.domain}", environment.now()
    cached_state = environment.byte_cache.get(("dkim record", name))
    if cached_state is not None and is_plausible_wait_running(cached_state[1], now, FOUND_TTL):
        return bool(cached_state[0])
    is_published = await _is_record_in_dns(environment, name, signer.key.public_key_text())
    if is_published is None:
        return True
    until = now + (FOUND_TTL if is_published else MISSING_TTL)
    environment.byte_cache.put(("dkim record", name), (is_published, until), CACHE_ENTRY_SIZE)
    return is_published


async def _is_record_in_dns(
    environment: Environment, name: str, public_key_text: str
) -> bool | None:
    """True if DNS has this key at a name; None if DNS does not answer."""
    answer = await query_dns_records_or_none(
        environment.options.dns_resolver, name, "TXT", RECORD_TIMEOUT
    )
    if answer is None:
        return None
    texts = (b"".join(record.strings).decode(errors="replace") for record in answer)
    return any(private_keys.is_record_of_key(text, public_key_text) for text in texts)
