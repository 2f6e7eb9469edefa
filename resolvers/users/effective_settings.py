"""Effective settings of a user, as a mail service needs them."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from models.errors import Invalid
from models.mailboxes.tables import Mailbox
from models.store.columns import Picked
from models.users.tables import User
from resolvers.access import visible_users
from resolvers.addresses import loaders as address_loaders
from resolvers.auth.passwords import password_policy
from resolvers.context import Context
from resolvers.users.quota import limits as quota_limits

SERVICES = {"api": "", "imap": "IMAP", "lmtp": "", "pop3": "POP3", "smtp": "SMTP"}
FORMAT = "parts, each once per tenant by SHA-256; zstd; not encrypted"  # how messages are stored
LONGEST = 1000  # characters
COLUMNS = (
    "username",
    "quota",
    "used",
    "domain_id",
    "tenant_id",
    "disabled",
    "suspended",
    "disabled_scopes",
    "recipients",
    "received_max",
    "received",
    "received_until",
    "retention",
)
_VARIABLE = re.compile(r"%(\{([^{}]*)\}|.?)", re.DOTALL)


async def folders(ctx: Context, user_ids: list[int]) -> list[dict[str, str]]:
    """Load the paths of the special mailboxes of these users, by use in lower case."""
    seen = select(col(User.id)).where(col(User.id) == col(Mailbox.user_id), visible_users(ctx))
    asked = select(col(Mailbox.user_id), col(Mailbox.special_use), col(Mailbox.path)).where(
        col(Mailbox.user_id).in_(user_ids),
        seen.exists(),
        col(Mailbox.special_use).is_not(None),
    )
    found: defaultdict[int, dict[str, str]] = defaultdict(dict)
    for row in await ctx.read(asked):
        found[row.user_id][row.special_use.lower()] = row.path
    return [found[key] for key in user_ids]


@dataclass(frozen=True, slots=True)
class Asked:
    """Which settings to return: of one service, of these names, of the user row only.

    And a template.
    """

    service: str | None = None
    fields: Sequence[str] | None = None
    userdb_only: bool = False
    template: str | None = None


async def settings(ctx: Context, user: Picked, asked: Asked) -> list[tuple[str, str]]:
    """Return names and values of a user's settings.

    Unless `userdb_only`, with mailboxes and limits. With `service`, only what this service needs.
    The filled-in `template` is the value `expand`. Raises Invalid for an unknown service or
    variable.
    """
    service = asked.service and asked.service.lower()
    if service is not None and service not in SERVICES:
        known = ", ".join(SERVICES)
        raise Invalid(f"a service is one of {known}", constraint="enum", path=["service"])
    address = await ctx.load(address_loaders.mains, user.id)
    shown = address.shown if address else None
    found: dict[str, Any] = {
        "user": user.username,
        "uid": user.id,
        "address": shown or "",
        "home": f"tenants/{user.tenant_id}/users/{user.id}",
        "mail": FORMAT,
        "quota/storage": await quota_limits.allowed(ctx, user),
        "nologin": user.disabled or user.suspended,
    }
    if service and SERVICES[service]:
        found["service/enabled"] = SERVICES[service] not in user.disabled_scopes
    if not asked.userdb_only:
        found |= await _more(ctx, user, service)
    chosen = [(name, _text(value)) for name, value in found.items()]
    chosen = [each for each in chosen if asked.fields is None or each[0] in asked.fields]
    if asked.template is not None:
        name, at, domain = (shown or user.username).partition("@")
        values = {"user": user.username, "local": name, "domain": domain if at else ""}
        chosen.append(("expand", expanded(asked.template, values)))
    return chosen


async def _more(ctx: Context, user: Picked, service: str | None) -> dict[str, Any]:
    options, found = ctx.world.options, dict[str, Any]()
    if service in (None, "api", "imap"):
        found |= {
            "namespace/inbox/prefix": "",
            "namespace/inbox/separator": "/",
            "namespace/inbox/inbox": True,
        }
        roles = await ctx.load(folders, user.id)
        found |= {f"mailbox/{use}": path for use, path in sorted(roles.items())}
        found["limit/mailboxes"] = options.max_mailboxes
    if service in (None, "api"):
        policy = await ctx.load(password_policy.of_users, user.id)
        found["password/min_length"] = policy.min_length
        found["password/min_classes"] = policy.min_classes
    if service in (None, "api", "smtp"):
        found["limit/recipients"] = (await quota_limits.recipients(ctx, user)).allowed
        found["limit/recipients_per_message"] = options.max_recipients
    if service in (None, "lmtp"):
        found["limit/received"] = quota_limits.received(ctx.world, user).allowed
    if service in (None, "api", "lmtp", "smtp"):
        found["limit/message_size"] = options.message_max
    found["retention"] = user.retention or 0
    return found


def _text(value: Any) -> str:
    """Return a value as text; booleans as yes or no."""
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def expanded(template: str, known: dict[str, str]) -> str:
    """Return the template with %{user}, %{local} and %{domain} filled in; %% is a percent sign.

    Raises Invalid for an unknown variable or a template that is too long.
    """

    def value(match: re.Match[str]) -> str:
        name = match[2]
        if match[0] == "%%":
            return "%"
        if name not in known:
            raise Invalid(
                f"a template has {', '.join(f'%{{{each}}}' for each in known)} and %%",
                constraint="template",
                path=["expand"],
            )
        return known[name]

    if len(template) > LONGEST:
        raise Invalid(f"at most {LONGEST} characters", constraint="max", path=["expand"])
    return _VARIABLE.sub(value, template)
