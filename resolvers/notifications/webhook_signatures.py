"""Signatures of posts, as in the Standard Webhooks specification, 1.0.0."""

import base64
import hmac

from models.runtime.environment import World
from models.store.columns import Picked

PREFIX = "whsec_"
SIZE = 32  # bytes of a secret


def place_of(webhook_id: int) -> str:
    """What the vault seals the secrets of a webhook for."""
    return f"webhook:{webhook_id}"


def new_secret(world: World) -> str:
    """A secret, as it is shown."""
    return PREFIX + base64.b64encode(world.random(SIZE)).decode()


def signature(secret: str, signed: bytes) -> str:
    """What stands in webhook-signature for a secret."""
    key = base64.b64decode(secret.removeprefix(PREFIX))
    return f"v1,{base64.b64encode(hmac.digest(key, signed, 'sha256')).decode()}"


def signed(world: World, hook: Picked, event: str, body: bytes) -> dict[str, str]:
    """The fields of a post, signed with each secret that is good; raises Sealed."""
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
