"""Sign webhook requests as in the Standard Webhooks specification, 1.0.0."""

import base64
import hmac

from models.runtime.environment import World
from models.store.columns import Picked

PREFIX = "whsec_"
SIZE = 32  # bytes


def place_of(webhook_id: int) -> str:
    """Return the purpose that the secret box binds the secrets of a webhook to."""
    return f"webhook:{webhook_id}"


def new_secret(world: World) -> str:
    """Return a new random secret in the form that users see."""
    return PREFIX + base64.b64encode(world.random(SIZE)).decode()


def signature(secret: str, signed: bytes) -> str:
    """Return one value of the header field webhook-signature."""
    key = base64.b64decode(secret.removeprefix(PREFIX))
    return f"v1,{base64.b64encode(hmac.digest(key, signed, 'sha256')).decode()}"


def signed(world: World, hook: Picked, event: str, body: bytes) -> dict[str, str]:
    """Return the header fields of a request, signed with each valid secret.

    Raises DecryptionError if a secret can't be decrypted.
    """
    now = world.now()
    stamp = str(int(now.timestamp()))
    sealed = [hook.secret]
    if hook.old_secret and hook.old_until and now < hook.old_until:
        sealed.append(hook.old_secret)
    secrets = [world.vault.open(one, place_of(hook.id)) for one in sealed]
    text = f"{event}.{stamp}.".encode() + body
    return {
        "Content-Type": "application/json",
        "webhook-id": event,
        "webhook-timestamp": stamp,
        "webhook-signature": " ".join(signature(secret, text) for secret in secrets),
    }
