"""Read DKIM keys, and compare their DNS records with what they should be."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, case, func, select
from sqlmodel import col

from mail.addresses.address_syntax import normalized_domain
from mail.domains.dns_advice import DnsState, PublishedSigningKey, RecordAdvice, dkim_record_advice
from models.domains.dkim_keys import ALL_DOMAINS, DkimAlgorithm, DkimKey, DkimKeyState
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.dns_queries import DnsQuestion, compare_with_answer, query_dns_records
from resolvers.list_orders import SortColumn, list_orders, read_ordered_page
from resolvers.pagination import read_by_keys
from resolvers.sql_text import contains_text_sql


class DkimKeyOrder(StrEnum):
    """The order of a list of DKIM keys; ties by id."""

    DOMAIN_ASC = "DOMAIN_ASC"
    DOMAIN_DESC = "DOMAIN_DESC"


LIST_ORDERS = list_orders(DkimKeyOrder, {"DOMAIN": SortColumn("domain", str)})
READABLE_COLUMNS = frozenset(column.name for column in select_columns(DkimKey)) - {
    "private",
    "dns_check_count",
    "due_at",
}
STATES_WITH_RECORD = (
    DkimKeyState.ACTIVE,
    DkimKeyState.PENDING,
)  # keys whose DNS record should exist, the best state first


def is_visible_key(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for keys of administered domains."""
    return domain_loaders.is_in_administered_domain(ctx, col(DkimKey.domain_id))


def _select_visible_keys(
    ctx: Context, column_names: Collection[str] = READABLE_COLUMNS
) -> Select[*tuple[Any, ...]]:
    columns = READABLE_COLUMNS.intersection(column_names) | {"id", "domain"}
    return select(*select_columns(DkimKey, columns)).where(is_visible_key(ctx))


async def load_visible_keys_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load DKIM keys by id, in the given order. None for ids that the viewer can't see."""
    return await read_by_keys(ctx, _select_visible_keys(ctx), col(DkimKey.id), ids)


def _domain_conditions(query: str | None) -> list[ColumnElement[bool]]:
    return [contains_text_sql(col(DkimKey.domain), query)] if query else []


async def read_visible_key_page(
    ctx: Context,
    query: str | None,
    page_request: PageRequest,
    columns: Collection[str],
    order: DkimKeyOrder = DkimKeyOrder.DOMAIN_ASC,
) -> Page[ColumnRow]:
    """Read a page of the visible DKIM keys; with `query`, only those whose domain name contains it.

    Raises InvalidInput for a cursor of another order.
    """
    statement = _select_visible_keys(ctx, columns).where(*_domain_conditions(query))
    return await read_ordered_page(ctx, statement, DkimKey, page_request, LIST_ORDERS[order])


async def count_visible_keys(ctx: Context, query: str | None) -> int:
    """Count the visible DKIM keys; with `query`, only those whose domain name contains it."""
    statement = select(func.count().label("many")).select_from(DkimKey)
    (row,) = await ctx.read(statement.where(is_visible_key(ctx), *_domain_conditions(query)))
    return int(row.many)


async def load_visible_active_or_pending_keys(
    ctx: Context, domains: list[domain_loaders.DomainIdOrName]
) -> list[ColumnRow | None]:
    """Load the key in use of each domain: an active one, RSA first, else a pending one.

    The names can have any spelling, and ALL_DOMAINS is a name here. None for a domain without
    such a key or that the viewer can't see.
    """
    ids = [domain.id for domain in domains if domain.id is not None]
    rows = await ctx.load_many(domain_loaders.load_administered_domains_by_id, ids) if ids else []
    name_by_id = {row.id: row.name for row in rows if row}
    names = [
        domain.name or "" if domain.id is None else name_by_id.get(domain.id, "")
        for domain in domains
    ]
    normal_names = [name if name == ALL_DOMAINS else normalized_domain(name) for name in names]
    state_rank = case((col(DkimKey.state) == DkimKeyState.ACTIVE, 0), else_=1)
    algorithm_rank = case((col(DkimKey.algorithm) == DkimAlgorithm.RSA, 0), else_=1)
    statement = _select_visible_keys(ctx).where(
        col(DkimKey.domain).in_(normal_names), col(DkimKey.state).in_(STATES_WITH_RECORD)
    )
    key_by_domain: dict[str, ColumnRow] = {}
    for row in await ctx.read(
        statement.order_by(state_rank, algorithm_rank, col(DkimKey.id).desc())
    ):
        key_by_domain.setdefault(row.domain, row)
    return [key_by_domain.get(name) for name in normal_names]


@dataclass(frozen=True, slots=True)
class DkimRecordKey:
    """Name and content of the DNS record of a key."""

    domain: str
    selector: str
    algorithm: DkimAlgorithm
    public: str

    @classmethod
    def from_row(cls, row: ColumnRow) -> "DkimRecordKey":
        """Return the record of the key in this row."""
        return cls(row.domain, row.selector, row.algorithm, row.public)


def expected_record(record: DkimRecordKey) -> RecordAdvice:
    """Return the DNS record that should exist for a key."""
    key = PublishedSigningKey(record.selector, record.algorithm, record.public)
    return dkim_record_advice(record.domain, key)


async def query_record_states_unless_writing(
    ctx: Context, records: list[DkimRecordKey]
) -> list[DnsState]:
    """Compare the records of keys with DNS, within one deadline.

    UNKNOWN inside a transaction, which would stay open as long, and for keys of all domains.
    """
    advices = [expected_record(record) for record in records]
    queried = [
        advice
        for advice, record in zip(advices, records, strict=True)
        if record.domain != ALL_DOMAINS and not ctx.is_writing
    ]
    questions = [DnsQuestion(advice.name, advice.type) for advice in queried]
    answers = (
        await query_dns_records(ctx.environment.options.dns_resolver, questions) if queried else {}
    )
    queried_ids = set(map(id, queried))
    return [
        compare_with_answer(advice, answers[DnsQuestion(advice.name, advice.type)]).state
        if id(advice) in queried_ids
        else DnsState.UNKNOWN
        for advice in advices
    ]
