"""Read certificates of the platform as an ADMIN. Private keys are never returned."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, false, func, or_, select, true
from sqlmodel import col

from mail.tls import pem_certificates
from mail.tls.pem_certificates import (
    wildcard_name,
)
from models.certificates import Certificate, CertificateName
from models.errors import (
    InvalidInput,
    require_all_found,
)
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import Role
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.list_orders import list_orders, read_ordered_page
from resolvers.pagination import read_by_keys


class CertificateOrder(StrEnum):
    """The order of a list of certificates; ties by id."""

    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"


LIST_ORDERS = list_orders(CertificateOrder)

MAX_QUERY_LENGTH = 255  # characters


def _is_visible_certificate(ctx: Context) -> ColumnElement[bool]:
    return true() if ctx.viewer.role.includes(Role.ADMIN) else false()


def _select_visible(
    ctx: Context, column_names: Collection[str] | None = None
) -> Select[*tuple[Any, ...]]:
    columns = None if column_names is None else {"id", *column_names}
    return select(*select_columns(Certificate, columns)).where(_is_visible_certificate(ctx))


async def load_visible_certificates_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load certificates by id, in the given order. None for ids that the viewer can't see."""
    return await read_by_keys(ctx, _select_visible(ctx), col(Certificate.id), ids)


async def find_visible_certificate_by_server_name(ctx: Context, name: str) -> ColumnRow | None:
    """Return the certificate stored for exactly this server name, or None."""
    try:
        server_name = pem_certificates.parse_server_name(name)
    except InvalidInput:
        return None
    rows = await ctx.read(_select_visible(ctx).where(col(Certificate.server_name) == server_name))
    return next(iter(rows), None)


async def load_visible_ids_by_server_name(ctx: Context, names: Sequence[str]) -> dict[str, int]:
    """Load the ids of the certificates stored for exactly these server names, in one statement.

    A name that is invalid or has no certificate is missing in the result.
    """
    server_names: dict[str, str] = {}
    for name in names:
        with suppress(InvalidInput):
            server_names[name] = pem_certificates.parse_server_name(name)
    rows = await ctx.read(
        _select_visible(ctx, {"server_name"}).where(
            col(Certificate.server_name).in_(server_names.values())
        )
    )
    ids = {row.server_name: int(row.id) for row in rows}
    return {name: ids[form] for name, form in server_names.items() if form in ids}


@dataclass(frozen=True, slots=True)
class CertificateConditions:
    """A part of the server name or, with `includes_alt_names`, of any name in the certificate."""

    query: str | None = None
    includes_alt_names: bool = False

    def validated_where_clause(self) -> ColumnElement[bool]:
        """Return the WHERE clause. Raises InvalidInput if the query is too long."""
        if not self.query:
            return true()
        if len(self.query) > MAX_QUERY_LENGTH or not self.query.isprintable():
            message = f"The search text has at most {MAX_QUERY_LENGTH} printable characters."
            raise InvalidInput(
                message, constraint=ValidationConstraint.LENGTH, path=["filter", "query"]
            )
        part = self.query.strip().lower()
        clause = col(Certificate.server_name).contains(part, autoescape=True)
        if not self.includes_alt_names:
            return clause
        name = col(CertificateName.name)
        is_of_certificate = col(CertificateName.certificate_id) == col(Certificate.id)
        matches = or_(name.contains(part, autoescape=True), name == wildcard_name(part))
        return or_(clause, exists().where(is_of_certificate, matches))


async def read_visible_certificate_page(
    ctx: Context,
    conditions: CertificateConditions,
    page_request: PageRequest,
    columns: Collection[str],
    order: CertificateOrder = CertificateOrder.CREATED_AT_ASC,
) -> Page[ColumnRow]:
    """Read a page of certificates. Raises InvalidInput for a cursor of another order."""
    list_order = LIST_ORDERS[order]
    statement = _select_visible(ctx, {list_order.column, *columns}).where(
        conditions.validated_where_clause()
    )
    return await read_ordered_page(ctx, statement, Certificate, page_request, list_order)


async def count_visible_certificates(ctx: Context, conditions: CertificateConditions) -> int:
    """Count the certificates that meet the conditions."""
    statement = select(func.count().label("many")).select_from(Certificate)
    (row,) = await ctx.read(
        statement.where(_is_visible_certificate(ctx), conditions.validated_where_clause())
    )
    return int(row.many)


async def require_visible_certificates(ctx: Context, ids: Sequence[int]) -> list[ColumnRow]:
    """Load certificates, each once.

    Raises NotFound if one is not visible.
    """
    rows = {row.id: row for row in await load_visible_certificates_by_id(ctx, list(ids)) if row}
    require_all_found(ids, rows)
    return list(rows.values())
