"""Passphrases that encrypt exported passwords. Tasks store them in the secret box."""

from collections.abc import Mapping
from typing import Any

from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.runtime.secret_box import DecryptionError
from models.users.roles import Scope
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context

MIN_LENGTH, MAX_LENGTH = 12, 1024  # characters
ORDER_KEY = "passphrase"  # in the order of a task, and in input paths


def validate_passphrase(text: str | None) -> str | None:
    """Return a valid passphrase unchanged; None if none is given. Raises InvalidInput."""
    if text is None:
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(
            "Must be valid Unicode text.", constraint=ValidationConstraint.TYPE, path=[ORDER_KEY]
        ) from None
    if not MIN_LENGTH <= len(text) <= MAX_LENGTH:
        error_text = f"Must have from {MIN_LENGTH} to {MAX_LENGTH} characters."
        raise InvalidInput(error_text, constraint=ValidationConstraint.LENGTH, path=[ORDER_KEY])
    return text


def encrypted_passphrase_field(
    ctx: Context, user_id: int, text: str | None, *, with_settings: bool
) -> dict[str, str]:
    """Return the encrypted passphrase as a field of a task order; empty if none is given.

    Raises Forbidden for credentials that can't change settings, since a stored password opens
    another account. Raises InvalidInput if settings are left out.
    """
    passphrase = validate_passphrase(text)
    if passphrase is None:
        return {}
    ctx.viewer.require_scope(Scope.SETTINGS)
    if not with_settings:
        error_text = "A passphrase requires `includeSettings`, and a format with settings."
        raise InvalidInput(error_text, constraint=ValidationConstraint.EXCLUSIVE, path=[ORDER_KEY])
    return {ORDER_KEY: ctx.environment.secret_box.encrypt(passphrase, _secret_box_context(user_id))}


def decrypt_passphrase_or_none(
    environment: Environment, user_id: int, task_order: Mapping[str, Any]
) -> str | None:
    """Return the passphrase of a task order; None if it has none.

    Raises InvalidInput if the key it was encrypted with no longer exists.
    """
    if ORDER_KEY not in task_order:
        return None
    try:
        return environment.secret_box.decrypt(task_order[ORDER_KEY], _secret_box_context(user_id))
    except DecryptionError:
        error_text = "The passphrase can't be decrypted any more: start the task again."
        raise InvalidInput(
            error_text, constraint=ValidationConstraint.DECRYPTION, path=[ORDER_KEY]
        ) from None


def order_without_passphrase(task_order: Mapping[str, Any]) -> dict[str, Any]:
    """Return the order of a finished task without the passphrase."""
    return {name: value for name, value in task_order.items() if name != ORDER_KEY}


def _secret_box_context(user_id: int) -> str:
    """Return the context that binds an encrypted passphrase to its user."""
    return f"passphrase:{user_id}"
