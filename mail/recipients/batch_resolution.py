"""Resolve many addresses with two SQL statements."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Select, String, bindparam, false, or_, select, true, union_all
from sqlalchemy.orm import aliased
from sqlmodel import col

from mail.recipients.address_resolution import AddressLookup, ReadStatement
from models.addresses.tables import Address
from models.domains.tables import Domain, DomainAlias
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, UtcDateTime, select_columns
from models.store.prepared_statements import is_in_parameter, prepare_cached

DomainIdsByName = Mapping[str, Mapping[int, bool]]


async def load_domain_ids_by_name(
    environment: Environment, domain_names: Collection[str], read_rows: ReadStatement | None = None
) -> DomainIdsByName:
    """Return the active local domains of normalized names.

    By name: domain IDs, each with True if the name is the domain's own and not an alias. The
    domain with the name itself comes first. Unknown names are missing.
    """
    domains_by_name, _ = await load_domains_and_backup_mx(environment, domain_names, read_rows)
    return domains_by_name


async def load_domains_and_backup_mx(
    environment: Environment, domain_names: Collection[str], read_rows: ReadStatement | None = None
) -> tuple[DomainIdsByName, set[str]]:
    """Return the domains as `load_domain_ids_by_name`, and the names that are backup MX domains."""
    domains_by_name: defaultdict[str, dict[int, bool]] = defaultdict(dict)
    held_names = set[str]()
    statement = _select_domains(environment.database.dialect).statement
    for row in await (read_rows or environment.database.read)(
        statement, {"names": list(domain_names)}
    ):
        domains_by_name[row.name].setdefault(row.id, row.own)
        held_names |= {row.name} if row.held else set()
    return domains_by_name, held_names


async def load_receiving_address_rows(
    environment: Environment,
    addresses: Collection[str],
    read_rows: ReadStatement | None = None,
    domains_by_name: DomainIdsByName | None = None,
) -> dict[str, ColumnRow]:
    """Return the address rows that receive mail for the addresses, by address.

    Two SQL statements, or one with `domains_by_name`. Disabled addresses are included, unknown ones
    are missing. Each row has the name of its domain as `place`, None if it is valid in all domains.
    """
    read_rows = read_rows or environment.database.read
    lookups_by_text = {
        text: lookup
        for text in addresses
        if (lookup := AddressLookup.from_address(environment, text))
    }
    if not lookups_by_text:
        return {}
    if domains_by_name is None:
        domains_by_name = await load_domain_ids_by_name(
            environment, {lookup.domain for lookup in lookups_by_text.values()}, read_rows
        )
    local_parts = list(
        {local for lookup in lookups_by_text.values() for local in lookup.candidates}
    )
    keys = list({key for domain in domains_by_name.values() for key in domain})
    rows: defaultdict[str, list[ColumnRow]] = defaultdict(list)
    asked_for = {"best": local_parts, "keys": keys, "now": environment.now()}
    for row in await read_rows(
        _select_addresses(environment.database.dialect).statement, asked_for
    ):
        rows[row.local].append(row)
    winners: dict[str, ColumnRow] = {}
    for text, lookup in lookups_by_text.items():
        domain_ids = domains_by_name.get(lookup.domain, {})
        candidates = [
            AddressCandidate(row, is_own_domain=domain_ids.get(row.domain_id, True))
            for local in lookup.candidates
            for row in rows[local]
            if row.domain_id in domain_ids or (row.domain_id is None and domain_ids)
        ]
        if winner := lookup.row_with_precedence(candidates):
            winners[text] = winner.address_row
    return winners


class AddressCandidate(NamedTuple):
    """An address row, and whether its domain is the named one and not the target of an alias."""

    address_row: ColumnRow
    is_own_domain: bool

    @property
    def domain_id(self) -> int | None:
        """The domain of the row; None: valid in all domains."""
        key: int | None = self.address_row.domain_id
        return key

    @property
    def local(self) -> str:
        """The local part or the pattern."""
        return str(self.address_row.local)


@prepare_cached
def _select_domains(dialect: str) -> Select[*tuple[Any, ...]]:
    """Select the active domains and alias domains of `names`."""
    is_own_domain = is_in_parameter(dialect, col(Domain.name), "names", String)
    is_alias_domain = is_in_parameter(dialect, col(DomainAlias.alias), "names", String)
    own_domains: Select[*tuple[Any, ...]] = select(
        col(Domain.name).label("name"),
        col(Domain.id).label("id"),
        true().label("own"),
        col(Domain.backup_mx).label("held"),
    )
    alias_domains = (
        select(col(DomainAlias.alias), col(DomainAlias.domain_id), false(), col(Domain.backup_mx))
        .join(Domain, col(Domain.id) == col(DomainAlias.domain_id))
        .where(is_alias_domain, col(DomainAlias.active), col(Domain.active))
    )
    all_domains = union_all(
        own_domains.where(is_own_domain, col(Domain.active)), alias_domains
    ).subquery()
    return select(all_domains).order_by(all_domains.c.own.desc())


@prepare_cached
def _select_addresses(dialect: str) -> Select[*tuple[Any, ...]]:
    """Select the unexpired address rows of `best` in the domains `keys`."""
    domain_table: Any = aliased(Domain)
    rows: Select[*tuple[Any, ...]] = select(
        *select_columns(Address), col(domain_table.name).label("domain_name")
    ).join(domain_table, col(domain_table.id) == col(Address.domain_id), isouter=True)
    return rows.where(
        is_in_parameter(dialect, col(Address.local), "best", String),
        or_(
            is_in_parameter(dialect, col(Address.domain_id), "keys"),
            col(Address.domain_id).is_(None),
        ),
        or_(
            col(Address.expires_at).is_(None),
            col(Address.expires_at) > bindparam("now", type_=UtcDateTime),
        ),
    )
