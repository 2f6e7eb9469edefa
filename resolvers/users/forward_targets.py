"""Forward targets of users: validate, store and log."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mail.addresses.address_syntax import normalized_address
from mail.recipients import forward_targets
from mail.recipients.batch_resolution import load_receiving_address_rows
from models.auth.security_log import SecurityEventAction
from models.errors import InvalidInput
from models.runtime.secret_box import DecryptionError
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers.addresses.targets import TargetsWithRelayPasswords, validate_forward_targets
from resolvers.auth import security_log
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.users.user_locks import LockedUsers

MAX_LOGGED_TARGETS = 10  # in an event of the security log
MAX_LOGGED_LENGTH = 200  # characters


def validated_target_columns(
    ctx: Context, user: ColumnRow, targets: Sequence[str], path: Sequence[str]
) -> dict[str, Any]:
    """Return the columns of a user with these targets.

    Raises InvalidInput for an unusable target.
    """
    try:
        stored_relays = forward_targets.decrypt_relay_urls(ctx.environment, user.id, user.relays)
    except DecryptionError:  # the key is lost: the caller must send the relay passwords again
        stored_relays = {}
    validated = validate_forward_targets(ctx, targets, stored_relays, path)
    columns: dict[str, Any] = {"forward_to": list(validated.shown_targets)}
    if dict(validated.relays_with_password) != stored_relays:
        columns["relays"] = forward_targets.encrypt_relay_urls_if_any(
            ctx.environment, user.id, validated.relays_with_password
        )
    return columns


def target_columns_of_new_user(
    ctx: Context,
    user_id: int,
    targets: TargetsWithRelayPasswords,
    address: str | None,
    path: Sequence[str],
) -> dict[str, Any]:
    """Return the target columns of a new user with this main address.

    Raises InvalidInput if the user would forward to the own address.
    """
    if address is not None:
        own_address = normalized_address(address)
        _raise_if_own_address(
            targets.shown_targets,
            {
                target
                for target in targets.shown_targets
                if normalized_address(target) == own_address
            },
            path,
        )
    encrypted_relays = forward_targets.encrypt_relay_urls_if_any(
        ctx.environment, user_id, targets.relays_with_password
    )
    return {"forward_to": list(targets.shown_targets), "relays": encrypted_relays}


async def set_forward_targets_and_log(
    ctx: Context, locked_users: LockedUsers, targets: Sequence[str], path: Sequence[str]
) -> None:
    """Set the targets of locked users and log the change to their security logs.

    Raises InvalidInput if a target is one of the user's own addresses or aliases.
    """
    columns_by_user = {
        row.id: validated_target_columns(ctx, row, targets, path) for row in locked_users.rows
    }
    target_addresses = {
        target
        for columns in columns_by_user.values()
        for target in columns["forward_to"]
        if "://" not in target
    }
    owner_ids = await _load_owner_ids(ctx, target_addresses)
    events = []
    for row in locked_users.rows:
        displayed = columns_by_user[row.id]["forward_to"]
        _raise_if_own_address(
            displayed, {address for address in displayed if owner_ids.get(address) == row.id}, path
        )
        if locked_users.set_columns_to_store(row, **columns_by_user[row.id]):
            events.append(
                _forwarding_event(
                    row.id, [address for address in displayed if address not in row.forward_to]
                )
            )
    await security_log.insert_security_events_and_queue_notices(ctx, locked_users.session, events)


async def _load_owner_ids(ctx: Context, addresses: Collection[str]) -> Mapping[str, int | None]:
    """Load the user ids that these addresses deliver to."""
    resolutions = await load_receiving_address_rows(ctx.environment, addresses, ctx.read)
    return {text: row.user_id for text, row in resolutions.items()}


def _raise_if_own_address(
    targets: Sequence[str], own_addresses: Collection[str], path: Sequence[str]
) -> None:
    """Raise InvalidInput if a target is an own address."""
    for index, target in enumerate(targets):
        if target in own_addresses:
            error_text = "A user can't forward to their own address."
            raise InvalidInput(
                error_text, constraint=ValidationConstraint.SELF, path=path, index=index
            )


def _forwarding_event(user_id: int, added_targets: Sequence[str]) -> NewSecurityEvent:
    logged = [target[:MAX_LOGGED_LENGTH] for target in added_targets[:MAX_LOGGED_TARGETS]]
    return NewSecurityEvent(
        SecurityEventAction.FORWARDING_CHANGED, user_id, detail={"added": logged} if logged else {}
    )
