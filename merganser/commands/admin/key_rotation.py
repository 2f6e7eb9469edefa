"""Rotation of the keys that stored secrets are encrypted with."""

from dataclasses import dataclass, field, replace
from datetime import datetime

from merganser.server import key_file
from merganser.server.store.store_use import use_database_exclusively
from merganser.settings.settings import Settings
from models.runtime.environment import Environment
from models.runtime.secret_box import SecretBox, generate_key
from resolvers.admin import secret_rotation
from resolvers.admin.secret_rotation import ReencryptionProgress


@dataclass(frozen=True, slots=True)
class SecretBoxKeyInfo:
    """A key of the key file, without its bytes."""

    name: str
    created_at: datetime | None
    secret_count: int  # stored secrets that are encrypted with it
    is_newest: bool


@dataclass(slots=True)
class KeyRotationResult:
    """The result of a key rotation."""

    new_key_name: str
    encrypted_count: int = 0
    removed_keys: list[str] = field(default_factory=list)  # names of keys without secrets
    undecryptable: list[str] = field(default_factory=list)  # secrets that no key decrypts


async def load_encryption_keys_with_secret_counts(
    environment: Environment,
) -> list[SecretBoxKeyInfo]:
    """Load the keys with their number of secrets, the newest last."""
    created_at_by_key = await key_file.load_key_creation_times(environment.database)
    secret_counts = await secret_rotation.count_encrypted_values_by_key(
        environment, environment.secret_box.keys
    )
    newest = environment.secret_box.newest_key_name
    return [
        SecretBoxKeyInfo(name, created_at_by_key.get(name), secret_counts[name], name == newest)
        for name in environment.secret_box.keys
    ]


async def rotate_encryption_keys(
    environment: Environment,
    settings: Settings,
    report_progress: ReencryptionProgress,
    *,
    keeps_old_keys: bool = False,
) -> KeyRotationResult:
    """Create a key, encrypt all stored secrets with it, and remove keys without secrets.

    Raises CommandError if a server runs, since a server knows only the keys it started with. If
    the process is killed, all secrets stay readable and the next run completes the rotation: a
    key is added to the file before its first use, and removed after its last one.
    """
    async with use_database_exclusively(environment, settings, "rotate the keys"):
        path = key_file.key_file_path(settings)
        name, key = generate_key()
        keys = {**key_file.read_encryption_keys_by_name(path), name: key}
        key_file.write_key_file(path, keys)
        environment.reach_fault_point("rotation")
        environment = replace(environment, secret_box=SecretBox(keys))
        await key_file.insert_missing_encryption_key_rows(
            environment.database, environment.secret_box
        )
        environment.reach_fault_point("rotation")
        outcome = await secret_rotation.reencrypt_all_secrets(environment, report_progress)
        result = KeyRotationResult(
            name, outcome.reencrypted_count, undecryptable=outcome.failed_contexts
        )
        if not keeps_old_keys:
            secret_counts = await secret_rotation.count_encrypted_values_by_key(environment, keys)
            result.removed_keys = [old for old in keys if not secret_counts[old] and old != name]
            await key_file.delete_registered_keys(environment.database, result.removed_keys)
            environment.reach_fault_point("rotation")
            key_file.write_key_file(
                path, {old: keys[old] for old in keys if old not in result.removed_keys}
            )
    return result
