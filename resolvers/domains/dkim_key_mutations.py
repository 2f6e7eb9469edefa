"""Create, copy and delete DKIM keys."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.authentication import private_keys
from mail.authentication.private_keys import RSA_SIZES, DkimPrivateKey, UnusableKey
from mail.authentication.public_keys import is_domain
from mail.authentication.signing_keys import secret_name
from models.domains.dkim_keys import DkimAlgorithm, DkimKey, DkimKeyState
from models.errors import (
    Conflict,
    ErrorCollector,
    Forbidden,
    InvalidInput,
    LimitReached,
    NotFound,
    require_all_found,
)
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.store.columns import ColumnRow, select_columns
from models.validation_constraints import ValidationConstraint
from resolvers import sql_text
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.domains import dkim_keys
from resolvers.domains.dkim_domains import (
    DEFAULT_SELECTOR,
    DkimDomain,
    require_administered_dkim_domains,
    require_key_name_fits_dns,
    require_unchanged_domains,
)
from resolvers.domains.dkim_key_changes import (
    AuditLogValues,
    audit_log_values,
    journal_and_audit_key_changes,
    journal_key_changes,
)
from resolvers.domains.loaders import DomainIdOrName, reference_text

MAX_KEYS_PER_DOMAIN = 20
MAX_LABEL_LENGTH = 63  # characters between two dots of a selector
MAX_DESCRIPTION_LENGTH = 1000  # characters
CONCURRENT_GENERATIONS = 2  # keys generated at the same time
MIN_SAFE_RSA_BITS = 2048  # some receivers refuse shorter RSA keys


@dataclass(frozen=True, slots=True)
class NewDkimKey:
    """The values of a key to set. Without a private key a new one is generated."""

    selector: str = DEFAULT_SELECTOR
    description: str | None = None
    private_key: str | None = field(default=None, repr=False)
    algorithm: DkimAlgorithm = DkimAlgorithm.RSA
    key_size: int = 2048
    replaces_existing: bool = True


@dataclass(frozen=True, slots=True)
class UnstoredDkimKey:
    """A key with its domain, selector and state before it is stored."""

    domain: DkimDomain
    selector: str
    private_key: DkimPrivateKey
    description: str | None = None
    state: DkimKeyState = DkimKeyState.ACTIVE

    def column_values(self, ctx: Context, key_id: int) -> dict[str, Any]:
        """Return the column values, with the private key encrypted for the row `key_id`."""
        now, active = ctx.environment.now(), self.state is DkimKeyState.ACTIVE
        return {
            "algorithm": self.private_key.algorithm,
            "key_size": self.private_key.bits,
            "private": ctx.environment.secret_box.encrypt(
                self.private_key.to_pem(), secret_name(key_id)
            ),
            "public": self.private_key.public_key_text(),
            "description": self.description,
            "state": self.state,
            "dns_check_count": 0,
            "due_at": None if active else now,
            "activated_at": now if active else None,
            "retired_at": None,
        }


async def set_active_keys(
    ctx: Context, domains: Sequence[DomainIdOrName], new_key: NewDkimKey
) -> list[int]:
    """Make domains sign with a new or given key; return the key ids in the order of domains.

    A key with the same selector is replaced, others of the same algorithm are retired. Raises
    InvalidInput, NotFound, Forbidden, LimitReached, or Conflict if a domain has a key and
    `replaces_existing` is false.
    """
    problems = ErrorCollector()
    with problems.collecting():
        selector = validate_selector(new_key.selector)
    with problems.collecting():
        description = sql_text.validated_trimmed_text(
            new_key.description, max_length=MAX_DESCRIPTION_LENGTH, path=["description"]
        )
    with problems.collecting():
        if new_key.private_key is None and new_key.algorithm is DkimAlgorithm.RSA:
            require_rsa_size(new_key.key_size)
    problems.raise_collected()
    given_key = (
        None if new_key.private_key is None else await _parse_private_key(new_key.private_key)
    )
    dkim_domains = await require_administered_dkim_domains(ctx, domains)
    for dkim_domain in dkim_domains:
        require_key_name_fits_dns(selector, dkim_domain.name, path=["selector"])
    private_keys_by_domain = (
        [given_key] * len(dkim_domains)
        if given_key
        else await generate_dkim_private_keys(
            ctx, [(new_key.algorithm, new_key.key_size)] * len(dkim_domains)
        )
    )
    new_keys = [
        UnstoredDkimKey(dkim_domain, selector, key, description)
        for dkim_domain, key in zip(dkim_domains, private_keys_by_domain, strict=True)
    ]
    return await store_keys_and_retire_superseded(
        ctx, new_keys, "dkimKeySet", replaces_existing=new_key.replaces_existing
    )


async def copy_active_keys(
    ctx: Context, source_ref: DomainIdOrName, target_refs: Sequence[DomainIdOrName]
) -> list[int]:
    """Make other domains sign with the active keys of a domain; return the ids of the copies.

    Raises NotFound if the source has no active key, and InvalidInput if a target is the source or
    its name is too long for a DNS record with one of the selectors.
    """
    (source,) = await require_administered_dkim_domains(ctx, [source_ref], path="fromDomain")
    active = col(DkimKey.state) == DkimKeyState.ACTIVE
    columns = select_columns(DkimKey, ("id", "selector", "description", "private"))
    statement = select(*columns).where(col(DkimKey.domain) == source.name, active)
    rows = await ctx.read(statement.order_by(col(DkimKey.id)))
    if not rows:
        raise NotFound(reference_text(source_ref), path=["fromDomain"])
    target_domains = await require_administered_dkim_domains(ctx, target_refs, path="toDomains")
    for index, target_domain in enumerate(target_domains):
        if target_domain.name == source.name:
            raise InvalidInput(
                "The target domain must differ from the source domain.",
                constraint=ValidationConstraint.SELF,
                path=["toDomains"],
                index=index,
            )
        for row in rows:
            require_key_name_fits_dns(
                row.selector, target_domain.name, path=["toDomains"], index=index
            )
    secret_box = ctx.environment.secret_box
    rows_and_keys = [
        (
            row,
            private_keys.parse_dkim_private_key(
                secret_box.decrypt(row.private, secret_name(row.id)), is_trusted=True
            ),
        )
        for row in rows
    ]
    new_keys = [
        UnstoredDkimKey(target, row.selector, key, row.description)
        for target in target_domains
        for row, key in rows_and_keys
    ]
    return await store_keys_and_retire_superseded(ctx, new_keys, "dkimKeyCopy", path="toDomains")


async def delete_keys_by_id_or_domain(
    ctx: Context, key_ids: Sequence[int], domains: Sequence[DomainIdOrName]
) -> list[int]:
    """Delete these keys and all keys of these domains, all or none; return their ids.

    Raises InvalidInput if nothing is given, NotFound if a key or a domain's keys are missing.
    """
    if not key_ids and not domains:
        raise InvalidInput(
            "At least one key or domain is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=["dkimKeys"],
        )
    dkim_domains = await require_administered_dkim_domains(ctx, domains) if domains else []
    domain_ids = {row.domain_id for row in await require_visible_keys(ctx, key_ids)} | {
        domain.domain_id for domain in dkim_domains
    }
    async with ctx.write_session(PLATFORM, *(key for key in domain_ids if key)) as session:
        rows = {row.id: row for row in await require_visible_keys(ctx, key_ids)}
        keys_of_domains = await load_keys_of_domains(ctx, dkim_domains)
        for index, dkim_domain in enumerate(dkim_domains):
            if not any(row.domain == dkim_domain.name for row in keys_of_domains):
                raise NotFound(dkim_domain.name, path=["domains"], index=index)
        rows |= {row.id: row for row in keys_of_domains}
        connection = await session.connection()
        await connection.execute(delete(DkimKey).where(col(DkimKey.id).in_(rows)))
        await journal_key_changes(
            ctx, session, list(rows.values()), event_type=EventType.DKIM_KEY_DELETED
        )
        entries = (
            NewAuditLogEntry(
                "dkimKeyDelete", "DkimKey", row.id, row.domain_id, before=audit_log_values(row)
            )
            for row in rows.values()
        )
        await audit_log.insert_audit_log_entries(ctx, session, *entries)
    return list(rows)


def validate_selector(text: str, field_name: str = "selector") -> str:
    """Return the selector in lower case. Raises InvalidInput if it is not allowed."""
    selector = text.strip().lower()
    labels = selector.split(".")
    if not is_domain(selector) or not all(0 < len(label) <= MAX_LABEL_LENGTH for label in labels):
        message = (
            "A selector has letters a-z, digits, hyphens and underscores, and dots between parts "
            "of at most 63 characters. Its first part does not begin or end with a hyphen."
        )
        raise InvalidInput(message, constraint=ValidationConstraint.SELECTOR, path=[field_name])
    return selector


def require_rsa_size(bits: int) -> None:
    """Raise InvalidInput if this number of bits is not allowed for an RSA key."""
    if bits not in RSA_SIZES:
        message = f"The key size must be one of {', '.join(map(str, RSA_SIZES))} bits."
        raise InvalidInput(
            message,
            constraint=ValidationConstraint.ENUM,
            path=["keySize"],
            allowed_values=RSA_SIZES,
        )


async def _parse_private_key(pem: str) -> DkimPrivateKey:
    """Parse a private key in a thread. Raises InvalidInput if it can't be used."""
    try:
        return await asyncio.to_thread(private_keys.parse_dkim_private_key, pem)
    except UnusableKey as problem:
        raise InvalidInput(
            str(problem), constraint=ValidationConstraint.KEY, path=["privateKey"]
        ) from None


async def generate_dkim_private_keys(
    ctx: Context, algorithms_and_sizes: Sequence[tuple[DkimAlgorithm, int]]
) -> list[DkimPrivateKey]:
    """Generate private keys in threads, since the work releases the interpreter lock.

    Raises Forbidden for several RSA keys inside a transaction, which would stay open as long.
    """
    if ctx.is_writing and sum(kind is DkimAlgorithm.RSA for kind, _ in algorithms_and_sizes) > 1:
        raise Forbidden("An @atomic request can generate only one RSA key.")
    generation_slots = asyncio.Semaphore(CONCURRENT_GENERATIONS)

    async def generate_key(algorithm: DkimAlgorithm, bits: int) -> DkimPrivateKey:
        async with generation_slots:
            return await generate_dkim_private_key(algorithm, bits)

    return await asyncio.gather(
        *(generate_key(*algorithm_and_size) for algorithm_and_size in algorithms_and_sizes)
    )


async def generate_dkim_private_key(algorithm: DkimAlgorithm, bits: int) -> DkimPrivateKey:
    """Generate a private key in a thread, since the work releases the interpreter lock."""
    return await asyncio.to_thread(private_keys.generate_key, algorithm, bits)


async def load_keys_of_domains(ctx: Context, dkim_domains: Sequence[DkimDomain]) -> list[ColumnRow]:
    """Load all keys of these domains, the oldest first."""
    domain_names = [dkim_domain.name for dkim_domain in dkim_domains]
    statement = select(*select_columns(DkimKey, dkim_keys.READABLE_COLUMNS)).where(
        col(DkimKey.domain).in_(domain_names)
    )
    return list(await ctx.read(statement.order_by(col(DkimKey.id))))


async def insert_first_pending_key(
    ctx: Context, session: AsyncSession, dkim_domain: DkimDomain, private_key: DkimPrivateKey
) -> AuditLogValues:
    """Insert the first key of a new domain and return its audit log values.

    It is PENDING until DNS has its record.
    """
    new_key = UnstoredDkimKey(
        dkim_domain, DEFAULT_SELECTOR, private_key, state=DkimKeyState.PENDING
    )
    row = _dkim_key_row(ctx, new_key, ctx.environment.new_id())
    session.add(row)
    await session.flush()
    await journal_key_changes(ctx, session, [row], event_type=EventType.DKIM_KEY_CREATED)
    return audit_log_values(row)


def _dkim_key_row(ctx: Context, new_key: UnstoredDkimKey, key_id: int) -> DkimKey:
    return DkimKey(
        id=key_id,
        domain_id=new_key.domain.domain_id,
        domain=new_key.domain.name,
        selector=new_key.selector,
        created_at=ctx.environment.now(),
        **new_key.column_values(ctx, key_id),
    )


async def store_keys_and_retire_superseded(
    ctx: Context,
    new_keys: Sequence[UnstoredDkimKey],
    mutation: str,
    *,
    replaces_existing: bool = True,
    path: str = "domains",
) -> list[int]:
    """Store keys, replace those with the same selector and retire those that they supersede.

    `path` is the field of the input with the domains. Raises NotFound, LimitReached, or Conflict
    if there are keys that must not be replaced.
    """
    dkim_domains = list(dict.fromkeys(new_key.domain for new_key in new_keys))
    stream_ids = {
        dkim_domain.domain_id for dkim_domain in dkim_domains if dkim_domain.domain_id is not None
    }
    ids = []
    async with ctx.write_session(PLATFORM, *stream_ids) as session:
        await require_unchanged_domains(ctx, dkim_domains)
        existing = await load_keys_of_domains(ctx, dkim_domains)
        if not replaces_existing:
            _require_no_key_replaced(existing, new_keys)
        _require_below_key_limit(existing, new_keys, dkim_domains, path)
        retired_ids = set[int]()
        rows_by_name = {(row.domain, row.selector): row for row in existing}
        inserted_rows = list[DkimKey]()
        for new_key in new_keys:
            row = rows_by_name.get((new_key.domain.name, new_key.selector))
            key_id = row.id if row else ctx.environment.new_id()
            if row is None:
                inserted_rows.append(_dkim_key_row(ctx, new_key, key_id))
            else:
                columns = new_key.column_values(ctx, key_id)
                await session.exec(
                    update(DkimKey).where(col(DkimKey.id) == key_id).values(**columns)
                )
            ids.append(key_id)
            retired_ids |= (
                superseded_key_ids(existing, new_key)
                if new_key.state is DkimKeyState.ACTIVE
                else set()
            )
        session.add_all(inserted_rows)
        await session.flush()
        await set_dkim_keys_to_retired(ctx, session, retired_ids - set(ids))
        changed = [*ids, *sorted(retired_ids - set(ids))]
        await journal_and_audit_key_changes(
            ctx, session, mutation, ({row.id: row for row in existing}, changed)
        )
    return ids


def superseded_key_ids(existing: Sequence[ColumnRow], new_key: UnstoredDkimKey) -> set[int]:
    """Return the ids of the keys that a new key supersedes.

    These have the same domain and algorithm, and another selector.
    """
    return {
        row.id
        for row in existing
        if row.domain == new_key.domain.name
        and row.algorithm is new_key.private_key.algorithm
        and row.selector != new_key.selector
        and row.state is not DkimKeyState.RETIRED
    }


async def set_dkim_keys_to_retired(ctx: Context, session: AsyncSession, key_ids: set[int]) -> None:
    """Set keys to RETIRED. They are deleted when their DNS records are no longer needed."""
    if not key_ids:
        return
    now = ctx.environment.now()
    delete_at = now + ctx.environment.options.dkim_retired_key_retention
    connection = await session.connection()
    await connection.execute(
        update(DkimKey)
        .where(col(DkimKey.id).in_(key_ids))
        .values(state=DkimKeyState.RETIRED, retired_at=now, due_at=delete_at)
    )


def _require_no_key_replaced(
    existing: Sequence[ColumnRow], new_keys: Sequence[UnstoredDkimKey]
) -> None:
    for index, new_key in enumerate(new_keys):
        has_same_selector = any(
            row.domain == new_key.domain.name and row.selector == new_key.selector
            for row in existing
        )
        if has_same_selector or superseded_key_ids(existing, new_key):
            message = f"{new_key.domain.name} already has this DKIM key."
            raise Conflict(message, path=["domains"], index=index)


def _require_below_key_limit(
    existing: Sequence[ColumnRow],
    new_keys: Sequence[UnstoredDkimKey],
    dkim_domains: Sequence[DkimDomain],
    path: str,
) -> None:
    names_and_selectors = {(row.domain, row.selector) for row in existing}
    names_and_selectors |= {(new_key.domain.name, new_key.selector) for new_key in new_keys}
    count_by_domain = Counter(name for name, _ in names_and_selectors)
    for index, dkim_domain in enumerate(dkim_domains):
        if count_by_domain[dkim_domain.name] > MAX_KEYS_PER_DOMAIN:
            raise LimitReached(
                f"A domain has at most {MAX_KEYS_PER_DOMAIN} DKIM keys.",
                limit=MAX_KEYS_PER_DOMAIN,
                used=MAX_KEYS_PER_DOMAIN,
                path=[path],
                index=index,
            )


async def require_visible_keys(ctx: Context, key_ids: Sequence[int]) -> list[ColumnRow]:
    """Load DKIM keys, each once. Raises NotFound if one is not visible."""
    rows = {
        row.id: row for row in await dkim_keys.load_visible_keys_by_id(ctx, list(key_ids)) if row
    }
    require_all_found(key_ids, rows, path=["dkimKeys"])
    return list(rows.values())


async def rename_domain_of_keys_and_count(
    ctx: Context, session: AsyncSession, domain_id: int, old_name: str, new_name: str
) -> int:
    """Set the new domain name in the keys of a renamed domain, and return their number.

    Raises InvalidInput if the new name is too long for the DNS record of a key.
    """
    statement = select(*select_columns(DkimKey, dkim_keys.READABLE_COLUMNS)).where(
        col(DkimKey.domain_id) == domain_id, col(DkimKey.domain) == old_name
    )
    rows = await ctx.read(statement)
    for row in rows:
        require_key_name_fits_dns(row.selector, new_name, path=["newName"])
    if rows:
        connection = await session.connection()
        update_statement = update(DkimKey).where(col(DkimKey.id).in_([row.id for row in rows]))
        await connection.execute(update_statement.values(domain=new_name))
        await journal_key_changes(ctx, session, rows, event_type=EventType.DKIM_KEY_UPDATED)
    return len(rows)


async def delete_keys_of_aliases(
    ctx: Context, session: AsyncSession, alias_names: Sequence[str]
) -> None:
    """Delete the keys of deleted alias domains, in the same transaction."""
    statement = select(*select_columns(DkimKey, dkim_keys.READABLE_COLUMNS)).where(
        col(DkimKey.domain).in_(alias_names)
    )
    rows = await ctx.read(statement)
    if rows:
        connection = await session.connection()
        key_ids = [row.id for row in rows]
        await connection.execute(delete(DkimKey).where(col(DkimKey.id).in_(key_ids)))
        await journal_key_changes(ctx, session, rows, event_type=EventType.DKIM_KEY_DELETED)
