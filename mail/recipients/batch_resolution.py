"""Resolve many addresses with two SQL statements."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Select, String, bindparam, false, or_, select, true, union_all
from sqlalchemy.orm import aliased
from sqlmodel import col

from mail.recipients.address_resolution import Read, Sought
from models.addresses.tables import Address
from models.domains.tables import Domain, DomainAlias
from models.runtime.environment import World
from models.store.columns import Instant, Picked, picked
from models.store.prepared_statements import among, prepared

Homes = Mapping[str, Mapping[int, bool]]


async def homes(world: World, names: Collection[str], read: Read | None = None) -> Homes:
    """Return the active local domains of normalized names.

    By name: domain IDs, each with True if the name is the domain's own and not an alias. The
    domain with the name itself comes first. Unknown names are missing.
    """
    found, _ = await homes_and_held(world, names, read)
    return found


async def homes_and_held(
    world: World, names: Collection[str], read: Read | None = None
) -> tuple[Homes, set[str]]:
    """Return the domains as `load_domains_by_name`, and the names that are backup MX domains."""
    found: defaultdict[str, dict[int, bool]] = defaultdict(dict)
    held = set[str]()
    asked = _named(world.database.dialect).made
    for row in await (read or world.database.read)(asked, {"names": list(names)}):
        found[row.name].setdefault(row.id, row.own)
        held |= {row.name} if row.held else set()
    return found, held


async def resolve_all(
    world: World, asked: Collection[str], read: Read | None = None, places: Homes | None = None
) -> dict[str, Picked]:
    """Return the address rows that receive mail for the addresses, by address.

    Two SQL statements, or one with `domains_by_name`. Disabled addresses are included, unknown ones
    are missing. Each row has the name of its domain as `place`, None if it is valid in all domains.
    """
    read = read or world.database.read
    wanted = {text: one for text in asked if (one := Sought.of(world, text))}
    if not wanted:
        return {}
    if places is None:
        places = await homes(world, {one.name for one in wanted.values()}, read)
    best = list({local for one in wanted.values() for local in one.best})
    keys = list({key for found in places.values() for key in found})
    rows: defaultdict[str, list[Picked]] = defaultdict(list)
    asked_for = {"best": best, "keys": keys, "now": world.now()}
    for row in await read(_there(world.database.dialect).made, asked_for):
        rows[row.local].append(row)
    winners: dict[str, Picked] = {}
    for text, one in wanted.items():
        here = places.get(one.name, {})
        fit = [
            Found(row, own=here.get(row.domain_id, True))
            for local in one.best
            for row in rows[local]
            if row.domain_id in here or (row.domain_id is None and here)
        ]
        if winner := one.winner(fit):
            winners[text] = winner.row
    return winners


class Found(NamedTuple):
    """An address row, and whether its domain is the named one and not the target of an alias."""

    row: Picked
    own: bool

    @property
    def domain_id(self) -> int | None:
        """The domain of the row; None: valid in all domains."""
        key: int | None = self.row.domain_id
        return key

    @property
    def local(self) -> str:
        """The local part or the pattern."""
        return str(self.row.local)


@prepared
def _named(dialect: str) -> Select[*tuple[Any, ...]]:
    """Select the active domains and alias domains of `names`."""
    own = among(dialect, col(Domain.name), "names", String)
    far = among(dialect, col(DomainAlias.alias), "names", String)
    here: Select[*tuple[Any, ...]] = select(
        col(Domain.name).label("name"),
        col(Domain.id).label("id"),
        true().label("own"),
        col(Domain.backup_mx).label("held"),
    )
    there = (
        select(col(DomainAlias.alias), col(DomainAlias.domain_id), false(), col(Domain.backup_mx))
        .join(Domain, col(Domain.id) == col(DomainAlias.domain_id))
        .where(far, col(DomainAlias.active), col(Domain.active))
    )
    both = union_all(here.where(own, col(Domain.active)), there).subquery()
    return select(both).order_by(both.c.own.desc())


@prepared
def _there(dialect: str) -> Select[*tuple[Any, ...]]:
    """Select the unexpired address rows of `best` in the domains `keys`."""
    home: Any = aliased(Domain)
    rows: Select[*tuple[Any, ...]] = select(*picked(Address), col(home.name).label("place")).join(
        home, col(home.id) == col(Address.domain_id), isouter=True
    )
    return rows.where(
        among(dialect, col(Address.local), "best", String),
        or_(among(dialect, col(Address.domain_id), "keys"), col(Address.domain_id).is_(None)),
        or_(
            col(Address.expires_at).is_(None),
            col(Address.expires_at) > bindparam("now", type_=Instant),
        ),
    )
