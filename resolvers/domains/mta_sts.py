"""Find the MTA-STS policy of a domain by host name (RFC 8461)."""

from mail.domains import mta_sts_policy
from mail.domains.mta_sts_policy import HOST_PREFIX, MODE_OFF
from models.runtime.environment import Environment
from resolvers.domains.served_domains import find_served_domain_id

MAX_HOST_LENGTH = 300


async def policy_text_of_host_or_none(environment: Environment, host: str) -> str | None:
    """Return the MTA-STS policy of the domain in a host name `mta-sts.DOMAIN`, or None.

    A domain with backup MX has no policy here, since other mail servers receive its mail.
    """
    options = environment.options
    host_name = host.rpartition(":")[0] or host
    if (
        options.mta_sts_mode == MODE_OFF
        or "." not in options.hostname
        or len(host_name) > MAX_HOST_LENGTH
    ):
        return None
    if not host_name.lower().startswith(HOST_PREFIX):
        return None
    domain_id = await find_served_domain_id(environment, host_name[len(HOST_PREFIX) :])
    if domain_id is None:
        return None
    return mta_sts_policy.policy_text(options.hostname, options.mta_sts_mode)
