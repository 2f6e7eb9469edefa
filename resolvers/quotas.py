"""Storage that is given away: what an account may use, and what its domain has left."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from models.columns import Picked
from models.domains import Domain
from models.errors import LimitReached
from models.world import World


def effective(world: World, domain: Any, quota: int | None) -> int:
    """The bytes an account of this domain, or of none, may use with this quota; 0: unlimited."""
    if quota is not None:
        return quota
    inherited = None if domain is None else domain.default_user_quota
    return world.options.default_quota if inherited is None else int(inherited)


def give(
    world: World,
    domain: Domain,
    before: Iterable[int],
    after: Iterable[int],
    *,
    path: Sequence[str] = ("quota",),
) -> None:
    """Give accounts of a domain these bytes instead of those, and keep its sum.

    The domain is held. LimitReached where it, or an account of it, would have too much; what
    becomes no more than it was is never refused.
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
    allocated = domain.quota_allocated - sum(before) + sum(after)
    grows = allocated > domain.quota_allocated
    if domain.quota and ((grows and allocated > domain.quota) or not all(after)):
        raise LimitReached(
            "more storage than the domain has left",
            limit=domain.quota,
            used=domain.quota_allocated,
            path=path,
        )
    domain.quota_allocated = allocated
    domain.updated_at = world.now()


def regive(
    world: World,
    domains: Mapping[int, Domain],
    rows: Iterable[Picked],
    quota: int | None,
    *,
    path: Sequence[str],
) -> None:
    """Give these accounts, each of one of these domains or of none, another quota."""
    theirs: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in rows:
        if row.domain_id:
            theirs[row.domain_id].append(row)
    for key, members in theirs.items():
        domain = domains[key]
        was = [effective(world, domain, row.quota) for row in members]
        give(world, domain, was, [effective(world, domain, quota)] * len(members), path=path)
