"""Allocation of a domain's quota to its users."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from models.domains.tables import Domain
from models.errors import LimitReached
from models.runtime.environment import World
from models.store.columns import Picked


def effective(world: World, domain: Any, quota: int | None) -> int:
    """Return the quota of a user of this domain, or of none, in bytes; 0 is unlimited."""
    if quota is not None:
        return quota
    inherited = None if domain is None else domain.default_user_quota
    return world.options.default_quota if inherited is None else int(inherited)


def seat(domain: Domain, *, path: Sequence[str]) -> None:
    """Raise LimitReached if the domain, which must be locked, has its highest number of users."""
    if domain.max_users and domain.user_count >= domain.max_users:
        raise LimitReached(
            "the domain has all its users",
            limit=domain.max_users,
            used=domain.user_count,
            path=path,
        )


def room(domain: Domain, more: int, *, unlimited: bool, path: Sequence[str]) -> int:
    """Return the bytes a domain has allocated after an increase.

    Raises LimitReached if they exceed its quota, or if a user of a limited domain would be
    unlimited. A decrease is never refused.
    """
    allocated = domain.quota_allocated + more
    if domain.quota and ((more > 0 and allocated > domain.quota) or unlimited):
        raise LimitReached(
            "more storage than the domain has left",
            limit=domain.quota,
            used=domain.quota_allocated,
            path=path,
        )
    return allocated


def give(
    world: World,
    domain: Domain,
    before: Iterable[int],
    after: Iterable[int],
    *,
    path: Sequence[str] = ("quota",),
) -> None:
    """Replace the quotas of users of a locked domain, and update its allocated bytes.

    Raises LimitReached if the domain or a user would exceed a limit. A decrease of the sum is never
    refused.
    """
    before, after = list(before), list(after)
    most = domain.max_user_quota
    for quota in after if most else ():
        if quota > most or not quota:
            raise LimitReached(
                "more storage than a user of the domain may have",
                limit=most,
                used=quota,
                path=path,
            )
    more = sum(after) - sum(before)
    domain.quota_allocated = room(domain, more, unlimited=not all(after), path=path)
    domain.updated_at = world.now()


def regive(
    world: World,
    domains: Mapping[int, Domain],
    rows: Iterable[Picked],
    quota: int | None,
    *,
    path: Sequence[str],
) -> None:
    """Set the quota of these users, each of one of these locked domains or of none.

    Raises LimitReached as `reallocate_quotas` does.
    """
    theirs: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in rows:
        if row.domain_id:
            theirs[row.domain_id].append(row)
    for key, members in theirs.items():
        domain = domains[key]
        was = [effective(world, domain, row.quota) for row in members]
        give(world, domain, was, [effective(world, domain, quota)] * len(members), path=path)
