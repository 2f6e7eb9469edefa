"""Read DKIM keys, and compare their DNS records with what they should be."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, case, func, select
from sqlmodel import col

from mail.addresses.address_syntax import normal_domain
from mail.domains.dns_advice import Advice, DnsState, SigningKey, dkim_advice
from models.domains.dkim_keys import ALL, DkimAlgorithm, DkimKey, DkimKeyState
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from resolvers import pagination
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.dns_records import look
from resolvers.pagination import Scan, by_keys
from resolvers.sql_text import within

SHOWN = frozenset(column.name for column in picked(DkimKey)) - {"private", "looks", "due_at"}
USED = (
    DkimKeyState.ACTIVE,
    DkimKeyState.PENDING,
)  # keys whose DNS record should exist, the best state first


def visible(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for keys of administered domains."""
    return domain_loaders.administered(ctx, col(DkimKey.domain_id))


def _keys(ctx: Context, names: Collection[str] = SHOWN) -> Select[*tuple[Any, ...]]:
    columns = SHOWN.intersection(names) | {"id", "domain"}
    return select(*picked(DkimKey, columns)).where(visible(ctx))


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load DKIM keys by id, in the given order. None for ids that the viewer can't see."""
    return await by_keys(ctx, _keys(ctx), col(DkimKey.id), ids)


def _called(query: str | None) -> list[ColumnElement[bool]]:
    return [within(col(DkimKey.domain), query)] if query else []


async def page(ctx: Context, query: str | None, ask: Ask, columns: Collection[str]) -> Page[Picked]:
    """Read a page of the visible DKIM keys, ordered by domain and age."""
    rows = _keys(ctx, columns).where(*_called(query))
    place = (col(DkimKey.domain), col(DkimKey.id))
    return await pagination.one(ctx, Scan(rows, ask, place, falling=False))


async def count(ctx: Context, query: str | None) -> int:
    """Count the visible DKIM keys that the query finds."""
    many = select(func.count().label("many")).select_from(DkimKey)
    (row,) = await ctx.read(many.where(visible(ctx), *_called(query)))
    return int(row.many)


async def of_domains(ctx: Context, names: list[str]) -> list[Picked | None]:
    """Load the key in use of each domain: an active one, RSA first, else a pending one.

    The names can have any spelling. None for a domain without such a key or that the viewer
    can't see.
    """
    spelled = [name if name == ALL else normal_domain(name) for name in names]
    standing = case((col(DkimKey.state) == DkimKeyState.ACTIVE, 0), else_=1)
    kind = case((col(DkimKey.algorithm) == DkimAlgorithm.RSA, 0), else_=1)
    asked = _keys(ctx).where(col(DkimKey.domain).in_(spelled), col(DkimKey.state).in_(USED))
    found: dict[str, Picked] = {}
    for row in await ctx.read(asked.order_by(standing, kind, col(DkimKey.id).desc())):
        found.setdefault(row.domain, row)
    return [found.get(name) for name in spelled]


@dataclass(frozen=True, slots=True)
class Record:
    """Name and content of the DNS record of a key."""

    domain: str
    selector: str
    algorithm: DkimAlgorithm
    public: str

    @classmethod
    def of(cls, row: Picked) -> "Record":
        """Return the record of the key in this row."""
        return cls(row.domain, row.selector, row.algorithm, row.public)


def advised(record: Record) -> Advice:
    """Return the DNS record that should exist for a key."""
    key = SigningKey(record.selector, record.algorithm, record.public)
    return dkim_advice(record.domain, key)


async def states(ctx: Context, records: list[Record]) -> list[DnsState]:
    """Compare the records of keys with DNS, within one deadline.

    UNKNOWN inside a transaction, which would stay open as long, and for keys of all domains.
    """
    each = [advised(one) for one in records]
    asked = [
        advice
        for advice, one in zip(each, records, strict=True)
        if one.domain != ALL and not ctx.writing
    ]
    judged = await look(ctx.world.options.dns_resolver, asked) if asked else {}
    return [
        judged[id(advice)].state if id(advice) in judged else DnsState.UNKNOWN for advice in each
    ]
