"""Validate changes of sender identities."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mail import mime
from mail.addresses.address_syntax import normalized_address
from mail.compose import draft_validation, message_draft
from models.errors import (
    ErrorCollector,
    Forbidden,
    InvalidInput,
)
from models.users.roles import AdminPermission, Role
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.submission.identities.administrator_diversions import DIVERTING_FIELDS
from resolvers.submission.identities.loaders import (
    AccountIdentities,
    SenderIdentity,
    id_from_address,
)
from resolvers.submission.sender_authorization import read_sender_grants
from resolvers.viewer import GuardRule

MAX_BCC = 20  # addresses of one identity
MAX_SIGNATURE_BYTES = 64 << 10  # of the text and of the HTML


@dataclass(frozen=True, slots=True)
class IdentityChanges:
    """New values of an identity by column. A column that is absent stays unchanged.

    If `changes_mailbox`, `mailbox_ref` is the new mailbox for copies, and None removes it.
    """

    values: Mapping[str, Any]
    mailbox_ref: mailbox_loaders.MailboxSelector | None = None
    changes_mailbox: bool = False
    input_path: Sequence[str] = ()


async def require_sendable_identity_of_address(
    ctx: Context, account_identities: AccountIdentities, address: str
) -> SenderIdentity:
    """Return the present or future identity of an address.

    Raises Forbidden if the user can't send so.
    """
    (grant,) = await read_sender_grants(ctx, [(account_identities.account, address)])
    if grant is None:
        raise Forbidden("The user is not allowed to send as this address.", path=["address"])
    normal_address = normalized_address(address)
    own_row = grant.own_address_row(account_identities.account.id, address)
    for identity in account_identities.by_address.values():
        if identity.normal_address == normal_address or (
            own_row and identity.address_id == own_row.id
        ):
            return identity
    if own_row:
        return account_identities.identity_of_own_address(own_row)
    return SenderIdentity(
        id_from_address(account_identities.account.id, normal_address),
        account_identities.account.id,
        normal_address,
        address,
        None,
    )


def require_permission_to_divert(
    ctx: Context, user_ids: Collection[int], changes: IdentityChanges
) -> None:
    """Raise Forbidden if the viewer may not divert copies or replies of other users."""
    other_ids = set(user_ids) - {ctx.viewer.user_id}
    if other_ids and any(changes.values.get(name) for name in DIVERTING_FIELDS):
        permission = AdminPermission.BCC_RULES
        ctx.viewer.require(GuardRule(role=Role.DOMAIN_ADMIN, admin_permission=permission))


async def validate_identity_changes(changes: IdentityChanges) -> IdentityChanges:
    """Return the changes in stored form. Raises InvalidInput with all that is wrong."""
    problems, values, input_path = ErrorCollector(), dict(changes.values), changes.input_path
    with problems.collecting():
        if values.get("name") is not None:
            text = values["name"].strip()
            values["name"] = (
                draft_validation.validate_single_line_text(
                    text, [*input_path, "name"], message_draft.MAX_NAME_BYTES
                )
                or None
            )
    with problems.collecting():
        if values.get("reply_to") is not None:
            values["reply_to"] = _validate_identity_address(
                values["reply_to"], [*input_path, "replyTo"]
            )
    with problems.collecting():
        if "bcc" in values:
            values["bcc"] = _validate_bcc(values["bcc"] or (), [*input_path, "bcc"])
    for name, path in (("signature_text", "signatureText"), ("signature_html", "signatureHtml")):
        with problems.collecting():
            if values.get(name) is not None:
                values[name] = (
                    draft_validation.validate_text_size_and_characters(
                        values[name], [*input_path, path], MAX_SIGNATURE_BYTES
                    )
                    or None
                )
    problems.raise_collected()
    if html := values.get("signature_html"):
        values["signature_html"] = await asyncio.to_thread(_sanitize_signature, html)
    return replace(changes, values=values)


def _validate_identity_address(text: str, path: Sequence[str], index: int | None = None) -> str:
    try:
        return draft_validation.normalize_and_validate_address_with_index(text, path[-1], index)
    except InvalidInput as error:
        raise InvalidInput(
            error.message, constraint=error.constraint, path=path, index=index
        ) from error


def _validate_bcc(addresses: Sequence[str], path: Sequence[str]) -> list[str]:
    if len(addresses) > MAX_BCC:
        raise InvalidInput(
            f"At most {MAX_BCC} addresses are allowed.",
            constraint=ValidationConstraint.MAX,
            path=path,
        )
    found: dict[str, str] = {}
    for index, text in enumerate(addresses):
        address = _validate_identity_address(text, path, index)
        found.setdefault(address.casefold(), address)
    return list(found.values())


def _sanitize_signature(html: str) -> str:
    """Return the HTML without scripts and other active content. Images stay, also remote ones."""
    return mime.sanitize_html(
        html, allow_remote_images=True, url_for_content_id=lambda cid: f"cid:{cid}"
    ).html
