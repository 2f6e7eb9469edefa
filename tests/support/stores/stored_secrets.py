"""All text in a database, to look for secrets in it."""

import base64
from pathlib import Path

from sqlalchemy import select
from sqlmodel import SQLModel

from models.runtime.environment import Environment
from resolvers.auth.second_factors import totp


async def stored_text(environment: Environment) -> str:
    """Read the whole database as text: its file and write-ahead log, or all rows."""
    if environment.database.dialect == "sqlite":
        path = Path(str(environment.database.engine.url.database))
        files = [file for file in path.parent.iterdir() if file.name.startswith(path.name)]
        return "".join(file.read_bytes().decode("latin-1") for file in files)
    return repr(
        [
            list(await environment.database.read(select(table)))
            for table in SQLModel.metadata.sorted_tables
        ]
    )


def encoded_forms(secret: str) -> set[str]:
    """The secret and the encodings in which a database could contain it."""
    raw = secret.encode()
    without_hyphens = secret.replace("-", "")
    base64_forms = {base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode()}
    forms = {secret, without_hyphens, secret.upper(), raw.hex(), *base64_forms}
    try:
        totp_secret = totp.decode_secret(secret)
    except Exception:  # noqa: BLE001 - not a TOTP secret
        return forms
    return forms | {totp_secret.hex(), totp_secret.decode("latin-1"), repr(totp_secret)[2:-1]}
