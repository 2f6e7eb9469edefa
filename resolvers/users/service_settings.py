"""Effective settings of a user, as a mail service needs them."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlmodel import col

from models.errors import InvalidInput
from models.mailboxes.tables import Mailbox
from models.store.columns import ColumnRow
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_visible_user
from resolvers.addresses import loaders as address_loaders
from resolvers.auth.passwords import password_policy
from resolvers.context import Context
from resolvers.users.quota import limits as quota_limits

SERVICES = {"api": "", "imap": "IMAP", "lmtp": "", "pop3": "POP3", "smtp": "SMTP"}
STORAGE_FORMAT = (
    "parts, each once per tenant by SHA-256; zstd; not encrypted"  # how messages are stored
)
MAX_TEMPLATE_LENGTH = 1000  # characters
USER_COLUMNS = (
    "username",
    "quota",
    "used",
    "domain_id",
    "tenant_id",
    "active",
    "suspended",
    "disabled_scopes",
    "recipients_per_day",
    "received_per_hour",
    "received",
    "received_until",
    "retention",
)
_TEMPLATE_VARIABLE = re.compile(r"%(\{([^{}]*)\}|.?)", re.DOTALL)


async def load_special_mailbox_paths(ctx: Context, user_ids: list[int]) -> list[dict[str, str]]:
    """Load the paths of the special mailboxes of these users, by use in lower case."""
    is_visible = select(col(User.id)).where(
        col(User.id) == col(Mailbox.user_id), is_visible_user(ctx)
    )
    statement = select(col(Mailbox.user_id), col(Mailbox.special_use), col(Mailbox.path)).where(
        col(Mailbox.user_id).in_(user_ids),
        is_visible.exists(),
        col(Mailbox.special_use).is_not(None),
    )
    paths_by_user: defaultdict[int, dict[str, str]] = defaultdict(dict)
    for row in await ctx.read(statement):
        paths_by_user[row.user_id][row.special_use.lower()] = row.path
    return [paths_by_user[key] for key in user_ids]


class EffectiveSetting(NamedTuple):
    """A setting of a user with the value that applies, as text."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class EffectiveSettingsRequest:
    """Which settings to return: of one service, of these names, of the user row only.

    And a template.
    """

    service: str | None = None
    fields: Sequence[str] | None = None
    userdb_only: bool = False
    template: str | None = None


async def load_effective_settings_of_user(
    ctx: Context, user: ColumnRow, request: EffectiveSettingsRequest
) -> list[EffectiveSetting]:
    """Return the settings of a user with the values that apply.

    Unless `userdb_only`, with mailboxes and limits. With `service`, only what this service needs.
    The filled-in `template` is the value `expand`. Raises InvalidInput for an unknown service or
    variable.
    """
    service = request.service and request.service.lower()
    if service is not None and service not in SERVICES:
        service_names = ", ".join(SERVICES)
        raise InvalidInput(
            f"The service must be one of {service_names}.",
            constraint=ValidationConstraint.ENUM,
            path=["service"],
            allowed_values=SERVICES,
        )
    address = await ctx.load(address_loaders.load_visible_main_addresses_by_user, user.id)
    displayed = address.display_address if address else None
    setting_values: dict[str, Any] = {
        "user": user.username,
        "uid": user.id,
        "address": displayed or "",
        "home": f"tenants/{user.tenant_id}/users/{user.id}",
        "mail": STORAGE_FORMAT,
        "quota/storage": await quota_limits.load_quota(ctx, user) or None,
        "nologin": user.suspended or not user.active,
    }
    if service and SERVICES[service]:
        setting_values["service/enabled"] = SERVICES[service] not in user.disabled_scopes
    if not request.userdb_only:
        setting_values |= await _mailbox_and_limit_settings(ctx, user, service)
    settings = [
        EffectiveSetting(key, _setting_text(value))
        for key, value in setting_values.items()
        if request.fields is None or key in request.fields
    ]
    if request.template is not None:
        local_part, at, domain = (displayed or user.username).partition("@")
        values = {"user": user.username, "local": local_part, "domain": domain if at else ""}
        expanded = fill_in_template(request.template, values)
        settings.append(EffectiveSetting("expand", expanded))
    return settings


async def _mailbox_and_limit_settings(
    ctx: Context, user: ColumnRow, service: str | None
) -> dict[str, Any]:
    options, values = ctx.environment.options, dict[str, Any]()
    if service in (None, "api", "imap"):
        values |= {
            "namespace/inbox/prefix": "",
            "namespace/inbox/separator": "/",
            "namespace/inbox/inbox": True,
        }
        paths = await ctx.load(load_special_mailbox_paths, user.id)
        values |= {f"mailbox/{use}": path for use, path in sorted(paths.items())}
        values["limit/mailboxes"] = options.mailboxes_max_per_user
    if service in (None, "api"):
        policy = await ctx.load(password_policy.load_policies_of_users, user.id)
        values["password/min_length"] = policy.min_length
        values["password/min_classes"] = policy.min_classes
    if service in (None, "api", "smtp"):
        values["limit/recipients"] = (await quota_limits.load_recipient_usage(ctx, user)).limit
        values["limit/recipients_per_message"] = options.submission_max_recipients
    if service in (None, "lmtp"):
        values["limit/received"] = quota_limits.received_usage(ctx.environment, user).limit
    if service in (None, "api", "lmtp", "smtp"):
        values["limit/message_size"] = options.message_max_size
    values["retention"] = user.retention
    return values


def _setting_text(value: Any) -> str:
    """Return a value as text: booleans as yes or no, None as unlimited."""
    if value is None:
        return "unlimited"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def fill_in_template(template: str, values: dict[str, str]) -> str:
    """Return the template with %{user}, %{local} and %{domain} filled in; %% is a percent sign.

    Raises InvalidInput for an unknown variable or a template that is too long.
    """

    def replace_variable(match: re.Match[str]) -> str:
        name = match[2]
        if match[0] == "%%":
            return "%"
        if name not in values:
            raise InvalidInput(
                "The template can only have "
                f"{', '.join(f'%{{{value}}}' for value in values)} and %%.",
                constraint=ValidationConstraint.TEMPLATE,
                path=["expand"],
            )
        return values[name]

    if len(template) > MAX_TEMPLATE_LENGTH:
        raise InvalidInput(
            f"A template has at most {MAX_TEMPLATE_LENGTH:,} characters.",
            constraint=ValidationConstraint.MAX,
            path=["expand"],
        )
    return _TEMPLATE_VARIABLE.sub(replace_variable, template)
