"""Allocation of a domain's quota to its users."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from models.domains.tables import Domain
from models.errors import LimitReached
from models.runtime.environment import Environment
from models.store.columns import ColumnRow


def effective_quota(environment: Environment, domain: Any, quota: int | None) -> int:
    """Return the quota of a user of this domain, or of none, in bytes; 0 is unlimited."""
    if quota is not None:
        return quota
    inherited = None if domain is None else domain.default_user_quota
    return environment.options.users_default_quota if inherited is None else int(inherited)


def require_user_slot(domain: Domain, *, path: Sequence[str]) -> None:
    """Raise LimitReached if the domain, which must be locked, has its highest number of users."""
    if domain.max_users and domain.user_count >= domain.max_users:
        raise LimitReached(
            "The domain has reached its limit of users.",
            limit=domain.max_users,
            used=domain.user_count,
            path=path,
        )


def validated_allocation_after_increase(
    domain: Domain, increase: int, *, is_unlimited: bool, path: Sequence[str]
) -> int:
    """Return the bytes a domain has allocated after an increase.

    Raises LimitReached if they exceed its quota, or if a user of a limited domain would be
    unlimited. A decrease is never refused.
    """
    allocated = domain.quota_allocated + increase
    if domain.quota and ((increase > 0 and allocated > domain.quota) or is_unlimited):
        raise LimitReached(
            "The quota exceeds the free storage of the domain.",
            limit=domain.quota,
            used=domain.quota_allocated,
            path=path,
        )
    return allocated


def reallocate_quotas_or_raise(
    environment: Environment,
    domain: Domain,
    old_quotas: Iterable[int],
    new_quotas: Iterable[int],
    *,
    path: Sequence[str] = ("quota",),
) -> None:
    """Replace the quotas of users of a locked domain, and update its allocated bytes.

    Raises LimitReached if the domain or a user would exceed a limit. A decrease of the sum is never
    refused.
    """
    old_quotas, new_quotas = list(old_quotas), list(new_quotas)
    max_user_quota = domain.max_user_quota
    for quota in new_quotas if max_user_quota else ():
        if quota > max_user_quota or not quota:
            raise LimitReached(
                "The quota exceeds the highest quota of a user of the domain.",
                limit=max_user_quota,
                used=quota,
                path=path,
            )
    increase = sum(new_quotas) - sum(old_quotas)
    domain.quota_allocated = validated_allocation_after_increase(
        domain, increase, is_unlimited=not all(new_quotas), path=path
    )
    domain.updated_at = environment.now()


def update_domain_allocations_for_new_quota(
    environment: Environment,
    domains: Mapping[int, Domain],
    users: Iterable[ColumnRow],
    quota: int | None,
    *,
    path: Sequence[str],
) -> None:
    """Set the quota of these users, each of one of these locked domains or of none.

    Raises LimitReached as `reallocate_quotas_or_raise` does.
    """
    users_by_domain: defaultdict[int, list[ColumnRow]] = defaultdict(list)
    for row in users:
        if row.domain_id:
            users_by_domain[row.domain_id].append(row)
    for key, members in users_by_domain.items():
        domain = domains[key]
        old_quotas = [effective_quota(environment, domain, row.quota) for row in members]
        reallocate_quotas_or_raise(
            environment,
            domain,
            old_quotas,
            [effective_quota(environment, domain, quota)] * len(members),
            path=path,
        )
