"""The domains and alias domains that DKIM mutations name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, select, true, union_all
from sqlmodel import col

from mail.addresses.address_syntax import ascii_domain, normalized_domain
from mail.authentication.public_keys import MAX_NAME_LENGTH
from models.domains.dkim_keys import ALL_DOMAINS
from models.domains.tables import Domain, DomainAlias
from models.errors import (
    Forbidden,
    InvalidInput,
    NotFound,
)
from models.events.journal import PLATFORM
from models.users.roles import Role
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import DomainIdOrName

DEFAULT_SELECTOR = "dkim"  # used if the input has none

MAX_DOMAINS_PER_CALL = 50  # a key is generated for each


@dataclass(frozen=True, slots=True)
class DkimDomain:
    """A domain or alias domain with keys of its own, or ALL_DOMAINS."""

    name: str
    domain_id: int | None

    @property
    def stream_id(self) -> int:
        """The stream that records changes of its keys, in addition to the platform's."""
        return PLATFORM if self.domain_id is None else self.domain_id


async def require_administered_dkim_domains(
    ctx: Context,
    refs: Sequence[DomainIdOrName],
    *,
    path: str = "domains",
) -> list[DkimDomain]:
    """Return the referenced domains and alias domains, each once. ALL_DOMAINS is a name here.

    Raises NotFound if the viewer does not administer one, Forbidden for ALL_DOMAINS unless the
    viewer is an ADMIN, and InvalidInput if there are too many.
    """
    if not 0 < len(refs) <= MAX_DOMAINS_PER_CALL:
        raise InvalidInput(
            f"From 1 to {MAX_DOMAINS_PER_CALL} domains are required.",
            constraint=ValidationConstraint.MAX,
            path=[path],
        )
    normal_names = await _require_normal_names(ctx, refs, path)
    is_visible_domain = domain_loaders.is_administered_domain(ctx)
    is_administered_alias = domain_loaders.is_in_administered_domain(
        ctx, col(DomainAlias.domain_id)
    )
    rows = await ctx.read(
        _select_domains_by_name(normal_names, is_visible_domain, is_administered_alias)
    )
    ids_by_name: dict[str, int | None] = {row.name: row.key for row in rows}
    if ctx.viewer.role.includes(Role.ADMIN):
        ids_by_name[ALL_DOMAINS] = None
    domains_by_name: dict[str, DkimDomain] = {}
    for index, name in enumerate(normal_names):
        if name == ALL_DOMAINS and ALL_DOMAINS not in ids_by_name:
            message = "Requires the role ADMIN: the DKIM keys are for all domains."
            raise Forbidden(message, requires=Role.ADMIN, path=[path], index=index)
        if name not in ids_by_name:
            raise NotFound(domain_loaders.reference_text(refs[index]), path=[path], index=index)
        domains_by_name.setdefault(name, DkimDomain(name, ids_by_name[name]))
    return list(domains_by_name.values())


async def _require_normal_names(
    ctx: Context, refs: Sequence[DomainIdOrName], path: str
) -> list[str]:
    """Return the normalized names of domains. Raises NotFound for an id of no administered one."""
    ids = [ref.id for ref in refs if ref.id is not None]
    rows = await ctx.load_many(domain_loaders.load_administered_domains_by_id, ids) if ids else []
    name_by_id = {row.id: row.name for row in rows if row}
    names = list[str]()
    for index, ref in enumerate(refs):
        if ref.id is not None and ref.id not in name_by_id:
            raise NotFound(str(ref.id), path=[path], index=index)
        name = name_by_id[ref.id] if ref.id is not None else ref.name or ""
        names.append(name if name == ALL_DOMAINS else normalized_domain(name))
    return names


def _select_domains_by_name(
    domain_names: Sequence[str],
    domain_condition: ColumnElement[bool],
    alias_condition: ColumnElement[bool],
) -> Select[*tuple[Any, ...]]:
    """Select id and name of the domains and alias domains with these names."""
    own_names: Select[*tuple[Any, ...]] = select(
        col(Domain.id).label("key"), col(Domain.name).label("name")
    ).where(col(Domain.name).in_(domain_names), domain_condition)
    alias_names = select(col(DomainAlias.domain_id), col(DomainAlias.alias)).where(
        col(DomainAlias.alias).in_(domain_names), alias_condition
    )
    return select(union_all(own_names, alias_names).subquery())


async def require_unchanged_domains(ctx: Context, dkim_domains: Sequence[DkimDomain]) -> None:
    """Raise NotFound if a domain was deleted or renamed since it was loaded."""
    domain_names = [domain.name for domain in dkim_domains]
    rows = await ctx.read(_select_domains_by_name(domain_names, true(), true()))
    names_and_ids = {(row.name, row.key) for row in rows} | {(ALL_DOMAINS, None)}
    for index, dkim_domain in enumerate(dkim_domains):
        if (dkim_domain.name, dkim_domain.domain_id) not in names_and_ids:
            raise NotFound(dkim_domain.name, path=["domains"], index=index)


def require_key_name_fits_dns(
    selector: str, domain_name: str, *, path: Sequence[str], index: int | None = None
) -> None:
    """Raise InvalidInput if the DNS name of a key with this selector is too long."""
    suffix = domain_name if domain_name == ALL_DOMAINS else ascii_domain(domain_name)
    if len(f"{selector}._domainkey.{suffix}") > MAX_NAME_LENGTH:
        message = (
            f"The DNS name of the DKIM record would have more than {MAX_NAME_LENGTH} characters."
        )
        raise InvalidInput(
            message, constraint=ValidationConstraint.SELECTOR, path=path, index=index
        )
