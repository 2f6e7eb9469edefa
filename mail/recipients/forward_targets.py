"""The targets of a forwarding address: addresses, relays and webhooks.

The stored `forward_to` can be shown: the password of a relay is replaced by `***`. The URLs with
passwords are encrypted in `relays`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from models.runtime.environment import Environment

MASKED_TEXT = "***"  # replaces a password


@dataclass(frozen=True, slots=True)
class ForwardEndpoint:
    """A relay or webhook that an address forwards to."""

    recipient: str  # the address
    public_url: str  # without a password
    secret_url: str = field(repr=False)


def seal_context(address_id: int) -> str:
    """Return the context that the relays of an address are encrypted for."""
    return f"relays:{address_id}"


def encrypt_relay_urls_if_any(
    environment: Environment, address_id: int, secret_urls: Mapping[str, str]
) -> str | None:
    """Return the encrypted secret URLs by public URL, None if there are none."""
    if not secret_urls:
        return None
    return environment.secret_box.encrypt(
        orjson.dumps(secret_urls).decode(), seal_context(address_id)
    )


def decrypt_relay_urls(
    environment: Environment, address_id: int, sealed_relays: str | None
) -> dict[str, str]:
    """Return the secret URLs by public URL. Raises DecryptionError if they can't be decrypted."""
    if sealed_relays is None:
        return {}
    urls: dict[str, str] = orjson.loads(
        environment.secret_box.decrypt(sealed_relays, seal_context(address_id))
    )
    return urls


def targets_with_passwords(environment: Environment, address_row: Any) -> list[str]:
    """Return the targets of an address with passwords.

    Raises DecryptionError if they can't be decrypted.

    The row has `id`, `forward_to` and `relays`.
    """
    relay_urls = decrypt_relay_urls(environment, address_row.id, address_row.relays)
    return [relay_urls.get(target, target) for target in address_row.forward_to]
