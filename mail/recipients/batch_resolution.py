"""Resolve many addresses with two SQL statements."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Select, String, bindparam, false, or_, select, true, union_all
from sqlalchemy.orm import aliased
from sqlmodel import col

from mail.recipients.address_resolution import AddressLookup, ReadStatement
from models.addresses.tables import Address
from models.domains.tables import AliasDomain, Domain
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
    found, _ = await load_domains_and_backup_mx(environment, domain_names, read_rows)
    return found


async def load_domains_and_backup_mx(
    environment: Environment, domain_names: Collection[str], read_rows: ReadStatement | None = None
) -> tuple[DomainIdsByName, set[str]]:
    """Return the domains as `load_domain_ids_by_name`, and the names that are backup MX domains."""
    found: defaultdict[str, dict[int, bool]] = defaultdict(dict)
    held = set[str]()
    asked = _select_domains(environment.database.dialect).statement
    for row in await (read_rows or environment.database.read)(asked, {"names": list(domain_names)}):
        found[row.name].setdefault(row.id, row.own)
        held |= {row.name} if row.held else set()
    return found, held


async def resolve_addresses(
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
    wanted = {
        text: one for text in addresses if (one := AddressLookup.from_address(environment, text))
    }
    if not wanted:
        return {}
    if domains_by_name is None:
        domains_by_name = await load_domain_ids_by_name(
            environment, {one.domain for one in wanted.values()}, read_rows
        )
    best = list({local for one in wanted.values() for local in one.candidates})
    keys = list({key for found in domains_by_name.values() for key in found})
    rows: defaultdict[str, list[ColumnRow]] = defaultdict(list)
    asked_for = {"best": best, "keys": keys, "now": environment.now()}
    for row in await read_rows(
        _select_addresses(environment.database.dialect).statement, asked_for
    ):
        rows[row.local].append(row)
    winners: dict[str, ColumnRow] = {}
    for text, one in wanted.items():
        here = domains_by_name.get(one.domain, {})
        fit = [
            AddressCandidate(row, is_own_domain=here.get(row.domain_id, True))
            for local in one.candidates
            for row in rows[local]
            if row.domain_id in here or (row.domain_id is None and here)
        ]
        if winner := one.best_row(fit):
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
    own = is_in_parameter(dialect, col(Domain.name), "names", String)
    far = is_in_parameter(dialect, col(AliasDomain.alias), "names", String)
    here: Select[*tuple[Any, ...]] = select(
        col(Domain.name).label("name"),
        col(Domain.id).label("id"),
        true().label("own"),
        col(Domain.backup_mx).label("held"),
    )
    there = (
        select(col(AliasDomain.alias), col(AliasDomain.domain_id), false(), col(Domain.backup_mx))
        .join(Domain, col(Domain.id) == col(AliasDomain.domain_id))
        .where(far, col(AliasDomain.active), col(Domain.active))
    )
    both = union_all(here.where(own, col(Domain.active)), there).subquery()
    return select(both).order_by(both.c.own.desc())


@prepare_cached
def _select_addresses(dialect: str) -> Select[*tuple[Any, ...]]:
    """Select the unexpired address rows of `best` in the domains `keys`."""
    home: Any = aliased(Domain)
    rows: Select[*tuple[Any, ...]] = select(
        *select_columns(Address), col(home.name).label("place")
    ).join(home, col(home.id) == col(Address.domain_id), isouter=True)
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
