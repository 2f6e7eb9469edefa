"""Everything a store holds, to look for a secret in it."""

import base64
from pathlib import Path

from sqlalchemy import select
from sqlmodel import SQLModel

from models.runtime.environment import Environment
from resolvers.auth.second_factors import totp


async def stored_text(world: Environment) -> str:
    """Everything in the store: its file and write-ahead log, or all rows."""
    if world.database.dialect == "sqlite":
        path = Path(str(world.database.engine.url.database))
        files = [each for each in path.parent.iterdir() if each.name.startswith(path.name)]
        return "".join(each.read_bytes().decode("latin-1") for each in files)
    return repr(
        [
            list(await world.database.read(select(table)))
            for table in SQLModel.metadata.sorted_tables
        ]
    )


def encoded_forms(secret: str) -> set[str]:
    """A secret and the encodings in which a store could hold it."""
    raw = secret.encode()
    plain = secret.replace("-", "")
    coded = {base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode()}
    found = {secret, plain, secret.upper(), raw.hex(), *coded}
    try:
        seed = totp.decode_secret(secret)
    except Exception:  # noqa: BLE001 - no seed
        return found
    return found | {seed.hex(), seed.decode("latin-1"), repr(seed)[2:-1]}
