"""MTA-STS policies of other domains (RFC 8461): fetching, parsing and caching.

A cached policy is valid until its end, even if its domain does not answer: an attacker that blocks
the domain must not be able to remove the policy.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import delete, or_, select
from sqlmodel import col

from mail.network.outbound_http import Gate, Target, Unsent, fetch
from mail.routing.mx_hosts import Route, Unroutable, ask
from models.errors import Invalid
from models.routing.mta_sts import StsMode, StsPolicy
from models.runtime.environment import Turn, World
from models.store.columns import insert_or, table_of

LARGEST = 64 << 10  # RFC 8461, section 3.3
WHOLE = 20.0  # seconds
PATIENCE = timedelta(minutes=5)  # after a failed fetch
AGAIN = timedelta(days=1)  # of a valid policy
LONGEST = 31_557_600  # seconds (RFC 8461, section 3.2)
SERVERS = 100  # `mx` patterns of a policy
PAGE = "/.well-known/mta-sts.txt"

_RECORD = re.compile(r"v=STSv1[ \t]*;[ \t]*(.*)", re.DOTALL)
_ID = re.compile(r"(?:^|;)[ \t]*id[ \t]*=[ \t]*([A-Za-z0-9]{1,32})[ \t]*(?:;|$)")
_PATTERN = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


@dataclass(frozen=True, slots=True)
class Policy:
    """The MTA-STS policy of another domain. `max_age` is in seconds."""

    mode: StsMode
    mx: tuple[str, ...]
    max_age: int

    def names(self, server: str) -> bool:
        """True if an `mx` pattern of the policy matches the host name."""
        server = server.lower().rstrip(".")
        return any(
            server.partition(".")[2] == pattern[2:]
            if pattern.startswith("*.")
            else server == pattern
            for pattern in self.mx
        )


def read(raw: bytes) -> Policy:
    """Parse a policy (RFC 8461, section 3.2). Raises Invalid."""
    fields: dict[str, list[str]] = {}
    for line in raw.decode("utf-8", "replace").splitlines():
        name, mark, value = line.partition(":")
        if mark:
            fields.setdefault(name.strip().lower(), []).append(value.strip())
    if fields.get("version", [""])[0] != "STSv1":
        raise _wrong("it is no STSv1")
    try:
        mode = StsMode(fields.get("mode", [""])[0])
        age = fields.get("max_age", [""])[0]
    except ValueError:
        raise _wrong("its mode is none we know") from None
    if not (age.isascii() and age.isdecimal() and len(age) <= 10):  # noqa: PLR2004 - RFC 8461
        raise _wrong("its max_age is no number")
    mx = [pattern.lower().rstrip(".") for pattern in fields.get("mx", [])[:SERVERS]]
    if not all(_PATTERN.fullmatch(pattern) for pattern in mx) or (
        mode is not StsMode.NONE and not mx
    ):
        raise _wrong("it names no servers")
    return Policy(mode, tuple(mx), min(int(age), LONGEST))


async def policy(world: World, route: Route, domain: str) -> tuple[Policy | None, str]:
    """The valid policy of a domain, or None, with a phrase for the delivery trace.

    Fetches the policy if its id in DNS has changed or it is older than `REFRESH_INTERVAL`.
    """
    known = await _known(world, domain)
    now = world.now()
    holds = known is not None and now < known.expires_at
    published = await _published(route, domain)
    if published is None or (known is not None and known.retry_at and now < known.retry_at):
        if not holds:
            return None, "no policy" if published is None else "its policy could not be read"
        return _of(known), "its policy as it was read before"
    fresh = known is not None and known.policy_id == published and now < known.fetched_at + AGAIN
    if holds and fresh:
        return _of(known), f"its policy {published}"
    try:
        found = await _fetched(route, domain)
    except (Invalid, Unsent) as problem:
        await world.apply(partial(_failed, domain, published, now))
        if holds:
            return _of(known), f"its policy as it was read before: {problem}"
        return None, f"its policy could not be read: {problem}"
    await world.apply(partial(_keep, domain, published, found, now))
    return found, f"its policy {published}, read just now"


async def _known(world: World, domain: str) -> StsPolicy | None:
    asked = select(*table_of(StsPolicy).c).where(col(StsPolicy.domain) == domain)
    rows = await world.database.read(asked)
    return StsPolicy(**rows[0]._mapping) if rows else None  # noqa: SLF001 - the API of rows


def _of(row: StsPolicy | None) -> Policy | None:
    return Policy(row.mode, tuple(row.mx), row.max_age) if row else None


async def _published(route: Route, domain: str) -> str | None:
    """The policy id in DNS. None unless there is exactly one valid record."""
    try:
        found = await ask(route, f"_mta-sts.{domain}", "TXT")
    except Unroutable:
        return None
    texts = [
        b"".join(record.strings).decode("ascii", "replace") for record in found.records[:SERVERS]
    ]
    records = [hit for text in texts if (hit := _RECORD.fullmatch(text.strip()))]
    if len(records) != 1:
        return None
    named = _ID.search(records[0][1])
    return named[1] if named else None


async def _fetched(route: Route, domain: str) -> Policy:
    """Fetch and parse the policy of a domain. Raises HttpRequestFailed or Invalid."""
    host = f"mta-sts.{domain}"

    async def resolved(name: str, _port: int) -> Sequence[str]:
        found = list[str]()
        for kind in ("A", "AAAA"):
            try:
                found += [str(record.address) for record in (await ask(route, name, kind)).records]
            except Unroutable:
                continue
        return found

    gate = Gate(route.inward, route.trust, resolved, WHOLE)
    status, body = await fetch(Target(True, host, route.policy_port, PAGE), gate, LARGEST)
    if status != 200:  # noqa: PLR2004 - a redirection is not followed (RFC 8461, section 3.3)
        raise Unsent(f"status {status}")
    return read(body)


def _keep(domain: str, policy_id: str, found: Policy, now: datetime, turn: Turn) -> None:
    """Store a fetched policy, and delete expired policies of other domains."""
    values = {
        "policy_id": policy_id,
        "mode": found.mode,
        "mx": list(found.mx),
        "max_age": found.max_age,
        "fetched_at": now,
        "expires_at": now + timedelta(seconds=found.max_age),
        "retry_at": None,
    }
    _written(turn, domain, values, values)
    over = delete(StsPolicy).where(
        col(StsPolicy.expires_at) < now,
        or_(col(StsPolicy.retry_at).is_(None), col(StsPolicy.retry_at) < now),
        col(StsPolicy.domain) != domain,
    )
    turn.connection.execute(over)


def _failed(domain: str, policy_id: str, now: datetime, turn: Turn) -> None:
    """Store the time of the next fetch. A stored policy keeps its validity."""
    values = {
        "policy_id": policy_id,
        "mode": StsMode.NONE,
        "mx": [],
        "max_age": 0,
        "fetched_at": now,
        "expires_at": now,
        "retry_at": now + PATIENCE,
    }
    _written(turn, domain, values, {"retry_at": now + PATIENCE})


def _written(
    turn: Turn, domain: str, values: Mapping[str, object], changed: Mapping[str, object]
) -> None:
    wanted = insert_or(turn.connection.dialect.name, StsPolicy).values(
        id=turn.world.key(), domain=domain, **values
    )
    turn.connection.execute(wanted.on_conflict_do_update(index_elements=["domain"], set_=changed))


def _wrong(text: str) -> Invalid:
    return Invalid(text, constraint="policy", path=["policy"])
