"""Find the key of usage counters that a client names."""

import ipaddress

from sqlalchemy import select
from sqlmodel import col

from mail.addresses.address_syntax import normalized_domain
from models.domains.tables import Domain
from models.errors import InvalidInput
from models.metrics.names import MetricSetKind
from models.metrics.usage_recorder import OTHER_ID, Key
from models.observability.metrics import OTHER
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.metrics.loaders import NUMBERED_TYPES
from resolvers.users import loaders as user_loaders

NO_ID = -1  # of an object that does not exist


async def resolve_metric_key(ctx: Context, metric_type: MetricSetKind, text: str) -> Key:
    """Return the key under which a process counts what the text names.

    For a session the text is its number. The key of an unknown user or domain has no counters.
    Raises InvalidInput for the platform, which has no key, and for a malformed key.
    """
    path = ["filter", "key"]
    if metric_type is MetricSetKind.GLOBAL:
        raise InvalidInput(
            "GLOBAL has no key.", constraint=ValidationConstraint.UNSUPPORTED, path=path
        )
    if text == OTHER:
        return OTHER_ID if metric_type in NUMBERED_TYPES else OTHER
    if metric_type is MetricSetKind.USER:
        user = await user_loaders.find_user_by_name(ctx, text)
        return user.id if user else NO_ID
    if metric_type is MetricSetKind.DOMAIN:
        statement = select(col(Domain.id)).where(col(Domain.name) == normalized_domain(text))
        rows = await ctx.read(statement)
        return rows[0].id if rows else NO_ID
    if metric_type is MetricSetKind.SESSION:
        return int(text)
    if metric_type is MetricSetKind.IP:
        try:
            return str(ipaddress.ip_address(text))
        except ValueError:
            raise InvalidInput(
                "Not an IP address.", constraint=ValidationConstraint.FORMAT, path=path
            ) from None
    return text
