"""The ban policy: its values, defaults and limits."""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from models.throttling.networks import IPV4_OFFSET

POLICY_ID = 1  # of the only row
MAX_BAN_TIME = timedelta(days=30)
BAN_HISTORY = timedelta(days=30)  # after the end of a ban, the next one begins with `ban_time`
MAX_BANS = 100_000  # that are in force; the oldest are ended
MAX_LIST_ENTRIES = 5000  # of one list
MAX_LIST_HOSTS = 200  # host names of one list
MAX_ADDRESSES_PER_HOST = 64  # a DNS answer with more addresses is not used
WIDEST_PREFIX_LENGTHS = {4: 8, 6: 16}  # of a network that can be refused, by IP version


class BanCause(StrEnum):
    """What a client failed at, and why its network was banned."""

    SIGN_IN = "SIGN_IN"
    SECOND_FACTOR = "SECOND_FACTOR"
    LINK_PASSWORD = "LINK_PASSWORD"  # noqa: S105 - a kind of failure
    FORGED_LINK = "FORGED_LINK"
    SMTP_ABUSE = "SMTP_ABUSE"
    MANUAL = "MANUAL"


def widest_prefix_length(ip_version: int) -> int:
    """Return the least prefix length of a network that can be refused, of 128 bits."""
    return WIDEST_PREFIX_LENGTHS[ip_version] + (IPV4_OFFSET if ip_version == 4 else 0)  # noqa: PLR2004


@dataclass(frozen=True, slots=True)
class BanPolicyValues:
    """The values of the ban policy. Entries of the lists are networks or host names."""

    ban_time: timedelta = timedelta(minutes=30)
    ban_time_increment: bool = True
    max_attempts: int = 20  # failures within `retry_window` after which a network is banned
    retry_window: timedelta = timedelta(minutes=10)
    netmask_ipv4: int = 32  # prefix length of the networks that are counted and banned
    netmask_ipv6: int = 64
    allowlist: tuple[str, ...] = ()
    denylist: tuple[str, ...] = ()
    id: int = POLICY_ID

    def ban_duration(self, former_ban_count: int) -> timedelta:
        """Return the duration of the next ban of a network that was banned so often before."""
        if not self.ban_time_increment:
            return self.ban_time
        doublings = min(former_ban_count, 20)  # more would exceed any maximum
        return min(self.ban_time * (1 << doublings), MAX_BAN_TIME)
