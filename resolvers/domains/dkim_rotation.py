"""Replace DKIM keys without a time in which signatures can't be verified.

A new key waits until DNS has its record. Then it signs, and the old key is kept for a while.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, exists, select, update
from sqlalchemy.orm import aliased
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.domains.dns_advice import DnsState
from models.domains.dkim_keys import ALL_DOMAINS, DkimAlgorithm, DkimKey, DkimKeyState
from models.errors import Conflict, InvalidInput, NotFound
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.observability import metrics
from models.runtime.environment import Environment
from models.runtime.worker_stop import is_worker_stopping, sleep_until_worker_stops
from models.store.columns import ColumnRow, select_columns
from models.users.roles import Role, Scope
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.domains import dkim_key_mutations, dkim_keys
from resolvers.domains.dkim_domains import (
    DEFAULT_SELECTOR,
    DkimDomain,
    require_administered_dkim_domains,
    require_key_name_fits_dns,
)
from resolvers.domains.dkim_key_changes import journal_and_audit_key_changes, journal_key_changes
from resolvers.domains.dkim_key_mutations import UnstoredDkimKey
from resolvers.domains.dkim_keys import DkimRecordKey
from resolvers.domains.loaders import DomainIdOrName
from resolvers.viewer import Viewer

log = logging.getLogger(__name__)

POLL_SECONDS = 30.0  # between checks for due keys
MAX_KEYS_PER_STEP = 100  # per check
# pauses between DNS queries for a pending key
FIRST_DNS_RETRY = timedelta(minutes=1)
MAX_DNS_RETRY = timedelta(hours=1)
DELETE_RETRY = timedelta(days=1)  # until the next check whether a retired key can be deleted
SELECTORS_PER_DAY = 26

ROTATION_STEPS_METRIC = metrics.counter(
    "merganser_dkim_rotation",
    "DKIM keys: seen, the record was found in DNS; deleted, a retired key was deleted.",
    "step",
)


@dataclass(frozen=True, slots=True)
class DkimRotationValues:
    """Values of the keys of a rotation. None takes the value of the active key."""

    selector: str | None = None
    algorithm: DkimAlgorithm | None = None
    key_size: int | None = None


async def create_pending_successor_keys(
    ctx: Context, domains: Sequence[DomainIdOrName], values: DkimRotationValues
) -> list[int]:
    """Create a pending successor for each active key of these domains, and return their ids.

    Raises Conflict if a key is pending already or the selector is in use, and NotFound if no
    key is active.
    """
    selector = (
        None if values.selector is None else dkim_key_mutations.validate_selector(values.selector)
    )
    if values.key_size is not None:
        dkim_key_mutations.require_rsa_size(values.key_size)
    dkim_domains = await require_administered_dkim_domains(ctx, domains)
    planned_keys = _plan_successor_keys(
        ctx,
        dkim_domains,
        await dkim_key_mutations.load_keys_of_domains(ctx, dkim_domains),
        (selector, values),
    )
    private_keys = await dkim_key_mutations.generate_dkim_private_keys(
        ctx, [(planned.algorithm, planned.key_size) for planned in planned_keys]
    )
    pending = DkimKeyState.PENDING
    new_keys = [
        UnstoredDkimKey(planned.dkim_domain, planned.selector, key, state=pending)
        for planned, key in zip(planned_keys, private_keys, strict=True)
    ]
    async with ctx.write_session(
        PLATFORM, *(p.domain_id for p in dkim_domains if p.domain_id is not None)
    ):
        # check that no other transaction changed them
        existing = await dkim_key_mutations.load_keys_of_domains(ctx, dkim_domains)
        if _plan_successor_keys(ctx, dkim_domains, existing, (selector, values)) != planned_keys:
            raise Conflict(
                "Another request changed the keys of the domain at the same time: retry.",
                path=["domains"],
            )
        return await dkim_key_mutations.store_keys_and_retire_superseded(
            ctx, new_keys, "dkimKeyRotate"
        )


@dataclass(frozen=True, slots=True)
class PlannedDkimKey:
    """A DKIM key to create. Two plans are equal if they differ only in the key size."""

    dkim_domain: DkimDomain
    selector: str
    algorithm: DkimAlgorithm
    key_size: int = field(compare=False)


def _plan_successor_keys(
    ctx: Context,
    dkim_domains: Sequence[DkimDomain],
    existing: Sequence[ColumnRow],
    selector_and_values: tuple[str | None, DkimRotationValues],
) -> list[PlannedDkimKey]:
    """Decide which keys to create, with which selectors.

    Raises NotFound, InvalidInput or Conflict as `create_pending_successor_keys`.
    """
    (selector, values), planned_keys = selector_and_values, list[PlannedDkimKey]()
    for index, dkim_domain in enumerate(dkim_domains):
        keys_of_domain = [row for row in existing if row.domain == dkim_domain.name]
        active_keys = [row for row in keys_of_domain if row.state is DkimKeyState.ACTIVE]
        active_by_algorithm = {
            row.algorithm: row for row in active_keys if values.algorithm in (None, row.algorithm)
        }
        if not active_keys or not (active_by_algorithm or values.algorithm):
            raise NotFound(dkim_domain.name, path=["domains"], index=index)
        algorithms = list(active_by_algorithm) or [values.algorithm]
        if selector is not None and len(algorithms) > 1:
            message = "The algorithm is required, since two keys can't have the same selector."
            raise InvalidInput(
                message, constraint=ValidationConstraint.REQUIRED, path=["algorithm"]
            )
        selectors_in_use = {row.selector for row in keys_of_domain}
        for algorithm in algorithms:
            if any(
                row.algorithm is algorithm and row.state is DkimKeyState.PENDING
                for row in keys_of_domain
            ):
                message = f"{dkim_domain.name} already has a pending key of this algorithm."
                raise Conflict(message, path=["domains"], index=index)
            predecessor = active_by_algorithm.get(algorithm)
            key_selector = selector or _dated_selector_unused_if_possible(
                ctx,
                predecessor.selector if predecessor else DEFAULT_SELECTOR,
                selectors_in_use,
            )
            if key_selector in selectors_in_use:
                message = f"{dkim_domain.name} already has a key with this selector."
                raise Conflict(message, path=["selector"], index=index)
            require_key_name_fits_dns(key_selector, dkim_domain.name, path=["selector"])
            selectors_in_use.add(key_selector)
            size = values.key_size or (predecessor.key_size if predecessor else None) or 2048
            planned_keys.append(
                PlannedDkimKey(
                    dkim_domain,
                    key_selector,
                    algorithm,
                    max(size, 2048) if values.key_size is None else size,
                )
            )
    return planned_keys


def _dated_selector_unused_if_possible(
    ctx: Context, old_selector: str, selectors_in_use: set[str]
) -> str:
    """Return a selector with today's date: `dkim-20300131`, `dkim-20300131b` and so on.

    It is one in use if all SELECTORS_PER_DAY are.
    """
    base, _, tail = old_selector.rpartition("-")
    prefix = base if base and tail[:8].isdecimal() and len(tail) in (8, 9) else old_selector
    prefix_with_date = f"{prefix[:40]}-{ctx.environment.now():%Y%m%d}"
    suffixes = ["", *(chr(ord("a") + nth) for nth in range(1, SELECTORS_PER_DAY))]
    return next(
        (
            f"{prefix_with_date}{suffix}"
            for suffix in suffixes
            if f"{prefix_with_date}{suffix}" not in selectors_in_use
        ),
        prefix_with_date,
    )


async def activate_dkim_keys(ctx: Context, key_ids: Sequence[int]) -> list[int]:
    """Make keys sign now, also without a DNS record, and retire the keys that they replace.

    Raises InvalidInput, NotFound, or Conflict for two keys of one domain and algorithm.
    """
    rows = await dkim_key_mutations.require_visible_keys(ctx, key_ids)
    if len({(row.domain, row.algorithm) for row in rows}) < len(rows):
        message = "Two keys of the same domain and algorithm can't both be activated."
        raise Conflict(message, path=["dkimKeys"])
    domain_ids = {row.domain_id for row in rows if row.domain_id is not None}
    async with ctx.write_session(PLATFORM, *domain_ids) as session:
        await _activate_and_retire_others(
            ctx, session, await dkim_key_mutations.require_visible_keys(ctx, key_ids)
        )
    return list(key_ids)


async def _activate_and_retire_others(
    ctx: Context, session: AsyncSession, dkim_key_rows: Sequence[ColumnRow]
) -> None:
    domain_names = [row.domain for row in dkim_key_rows]
    statement = select(*select_columns(DkimKey, dkim_keys.READABLE_COLUMNS)).where(
        col(DkimKey.domain).in_(domain_names)
    )
    keys_of_domains = {row.id: row for row in await ctx.read(statement)}
    activated_ids = [row.id for row in dkim_key_rows if row.state is not DkimKeyState.ACTIVE]
    retired_ids = {
        other.id
        for other in keys_of_domains.values()
        for row in dkim_key_rows
        if (other.domain, other.algorithm) == (row.domain, row.algorithm)
        and other.id != row.id
        and other.state is not DkimKeyState.RETIRED
    }
    values = {
        "state": DkimKeyState.ACTIVE,
        "activated_at": ctx.environment.now(),
        "retired_at": None,
        "due_at": None,
    }
    connection = await session.connection()
    await connection.execute(
        update(DkimKey).where(col(DkimKey.id).in_(activated_ids)).values(values)
    )
    await dkim_key_mutations.set_dkim_keys_to_retired(ctx, session, retired_ids)
    changed = [*activated_ids, *sorted(retired_ids)]
    if changed:
        await journal_and_audit_key_changes(
            ctx, session, "dkimKeyActivate", (keys_of_domains, changed)
        )


async def activate_or_delete_due_keys_forever(environment: Environment) -> None:
    """Activate pending keys and delete retired ones, until cancelled or stopped."""
    while not is_worker_stopping():
        try:
            while await activate_or_delete_due_keys_and_count_due(environment) == MAX_KEYS_PER_STEP:
                pass
        except Exception:  # keep running: the database or DNS can be back at the next attempt
            log.exception("DKIM key rotation failed with an internal error")
        await sleep_until_worker_stops(POLL_SECONDS)


async def activate_or_delete_due_keys_and_count_due(environment: Environment) -> int:
    """Activate due pending keys, delete due retired ones, and return the number of due keys."""
    columns = {*dkim_keys.READABLE_COLUMNS, "dns_check_count"}
    is_due = col(DkimKey.due_at) <= environment.now()
    statement = (
        select(*select_columns(DkimKey, columns)).where(is_due).order_by(col(DkimKey.due_at))
    )
    rows = await environment.database.read(statement.limit(MAX_KEYS_PER_STEP))
    ctx = Context(environment, Viewer(role=Role.ROOT, scopes=frozenset({Scope.FULL})))
    pending_keys = [row for row in rows if row.state is DkimKeyState.PENDING]
    record_states = (
        await dkim_keys.query_record_states_unless_writing(
            ctx, [DkimRecordKey.from_row(row) for row in pending_keys]
        )
        if pending_keys
        else []
    )
    for row, state in zip(pending_keys, record_states, strict=True):
        await _activate_or_retry(ctx, row, has_record=state is DnsState.OK)
    for row in rows:
        if row.state is not DkimKeyState.PENDING:
            await _delete_retired_key_if_replaced(ctx, row)
    return len(rows)


async def _activate_or_retry(ctx: Context, dkim_key: ColumnRow, *, has_record: bool) -> None:
    """Activate a pending key if its DNS record exists, else check again after a longer pause."""
    is_pending_key = [col(DkimKey.id) == dkim_key.id, col(DkimKey.state) == DkimKeyState.PENDING]
    async with ctx.write_session(PLATFORM, *_domain_stream_ids(dkim_key)) as session:
        if not has_record or dkim_key.domain == ALL_DOMAINS:
            pause = min(FIRST_DNS_RETRY * 2 ** min(dkim_key.dns_check_count, 10), MAX_DNS_RETRY)
            # such a key has no DNS record
            next_check = None if dkim_key.domain == ALL_DOMAINS else ctx.environment.now() + pause
            connection = await session.connection()
            await connection.execute(
                update(DkimKey)
                .where(*is_pending_key)
                .values(dns_check_count=DkimKey.dns_check_count + 1, due_at=next_check)
            )
            return
        pending_rows = await ctx.read(
            select(*select_columns(DkimKey, dkim_keys.READABLE_COLUMNS)).where(*is_pending_key)
        )
        if pending_rows and pending_rows[0].public == dkim_key.public:
            await _activate_and_retire_others(ctx, session, pending_rows)
            ROTATION_STEPS_METRIC.add("seen")
            log.info(
                "DKIM key activated",
                extra={"domain": dkim_key.domain, "selector": dkim_key.selector},
            )


async def _delete_retired_key_if_replaced(ctx: Context, dkim_key: ColumnRow) -> None:
    """Delete a key whose retention has ended, unless its domain has no active key."""
    other: Any = aliased(DkimKey)
    now = ctx.environment.now()
    has_active_key = exists().where(
        other.domain == col(DkimKey.domain), other.state == DkimKeyState.ACTIVE
    )
    is_retired_key = [col(DkimKey.id) == dkim_key.id, col(DkimKey.state) == DkimKeyState.RETIRED]
    async with ctx.write_session(PLATFORM, *_domain_stream_ids(dkim_key)) as session:
        connection = await session.connection()
        deleted = await connection.execute(
            delete(DkimKey).where(*is_retired_key, col(DkimKey.due_at) <= now, has_active_key)
        )
        if deleted.rowcount:
            await journal_key_changes(
                ctx, session, [dkim_key], event_type=EventType.DKIM_KEY_DELETED
            )
            ROTATION_STEPS_METRIC.add("deleted")
            return
        next_check = now + DELETE_RETRY if dkim_key.state is DkimKeyState.RETIRED else None
        await connection.execute(
            update(DkimKey)
            .where(col(DkimKey.id) == dkim_key.id, col(DkimKey.state) == dkim_key.state)
            .values(due_at=next_check)
        )


def _domain_stream_ids(dkim_key: ColumnRow) -> list[int]:
    return [] if dkim_key.domain_id is None else [dkim_key.domain_id]
