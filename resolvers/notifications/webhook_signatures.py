"""Sign webhook requests as in the Standard Webhooks specification, 1.0.0."""

import base64
import hmac

from models.runtime.environment import Environment
from models.store.columns import ColumnRow

KEY_PREFIX = "whsec_"
SECRET_SIZE = 32  # bytes


def secret_purpose(webhook_id: int) -> str:
    """Return the purpose that the secret box binds the secrets of a webhook to."""
    return f"webhook:{webhook_id}"


def generate_secret(environment: Environment) -> str:
    """Return a new random secret in the form that users see."""
    return KEY_PREFIX + base64.b64encode(environment.random_bytes(SECRET_SIZE)).decode()


def signature(secret: str, signed_bytes: bytes) -> str:
    """Return one value of the header field webhook-signature."""
    key = base64.b64decode(secret.removeprefix(KEY_PREFIX))
    return f"v1,{base64.b64encode(hmac.digest(key, signed_bytes, 'sha256')).decode()}"


def signed_headers(
    environment: Environment, hook: ColumnRow, event_id: str, body: bytes
) -> dict[str, str]:
    """Return the header fields of a request, signed with each valid secret.

    Raises DecryptionError if a secret can't be decrypted.
    """
    now = environment.now()
    stamp = str(int(now.timestamp()))
    encrypted_secrets = [hook.secret]
    if hook.old_secret and hook.old_until and now < hook.old_until:
        encrypted_secrets.append(hook.old_secret)
    secrets = [
        environment.secret_box.decrypt(secret, secret_purpose(hook.id))
        for secret in encrypted_secrets
    ]
    signed_bytes = f"{event_id}.{stamp}.".encode() + body
    return {
        "Content-Type": "application/json",
        "webhook-id": event_id,
        "webhook-timestamp": stamp,
        "webhook-signature": " ".join(signature(secret, signed_bytes) for secret in secrets),
    }
