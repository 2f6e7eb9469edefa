"""All columns encrypted by the secret box: count values by key, and re-encrypt them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select, update
from sqlmodel import SQLModel

from mail.authentication import signing_keys
from mail.recipients import forward_targets
from mail.routing import password_contexts
from models.addresses.tables import Address
from models.auth.second_factors import TotpSeed
from models.certificates import AcmeAccount, Certificate
from models.connectors import Connector
from models.domains.dkim_keys import DkimKey
from models.notifications.push_channels import PushChannel, PushKey
from models.notifications.webhooks import Webhook
from models.routing.tables import RelayHost, Transport
from models.runtime.environment import Turn, World
from models.runtime.secret_box import Sealed
from models.store.columns import Picked, picked, table_of
from models.users.tables import User
from resolvers.auth.second_factors import totp
from resolvers.certificates import acme_accounts, certificates
from resolvers.connectors import credentials
from resolvers.notifications import push_requests, web_push, webhook_signatures

ROUND = 500

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Encrypted columns of a table, and the context that their values are encrypted for."""

    table: type[SQLModel]
    key: str
    columns: tuple[str, ...]
    of: Callable[[int], str]


PLACES = (
    Place(TotpSeed, "user_id", ("seed", "pending"), totp.place_of),
    Place(Webhook, "id", ("secret", "old_secret"), webhook_signatures.place_of),
    Place(PushChannel, "id", ("target",), push_requests.place_of),
    Place(Address, "id", ("relays",), forward_targets.place_of),
    Place(User, "id", ("relays",), forward_targets.place_of),
    Place(Connector, "id", ("secret",), credentials.place_of),
    Place(PushKey, "id", ("private",), web_push.place_of),
    Place(DkimKey, "id", ("private",), signing_keys.place_of),
    Place(RelayHost, "id", ("secret",), password_contexts.place_of_relay),
    Place(Transport, "id", ("secret",), password_contexts.place_of_transport),
    Place(Certificate, "id", ("private_key",), certificates.place_of),
    Place(AcmeAccount, "id", ("private_key",), acme_accounts.place_of),
)


@dataclass(slots=True)
class Resealed:
    """The number of re-encrypted values, and the contexts of values that could not be decrypted."""

    done: int = 0
    closed: list[str] = field(default_factory=list)


async def counted(world: World, names: Iterable[str]) -> dict[str, int]:
    """Count the values that are encrypted with each of these keys."""
    found = dict.fromkeys(names, 0)
    for place in PLACES:
        for column in place.columns:
            sealed = table_of(place.table).c[column]
            for name in found:
                asked = select(func.count().label("many")).where(sealed.startswith(f"{name}."))
                (row,) = await world.database.read(asked.select_from(table_of(place.table)))
                found[name] += row.many
    return found


async def reseal(world: World, progress: Progress = lambda _done, _total: None) -> Resealed:
    """Encrypt all values with the newest key, ROWS_PER_TRANSACTION rows per transaction.

    It can be interrupted and started again, since values with the newest key are skipped.
    """
    came, passed = Resealed(), 0
    total = sum([await _rows(world, place) for place in PLACES])
    for place in PLACES:
        table, reached = table_of(place.table), 0
        key = table.c[place.key]
        while True:
            columns = picked(place.table, (place.key, *place.columns))
            asked = select(*columns).where(key > reached).order_by(key).limit(ROUND)
            rows = await world.database.read(asked)
            if not rows:
                break
            await _sealed(world, place, rows, came)
            reached, passed = rows[-1][columns.index(key)], passed + len(rows)
            progress(passed, total)
            world.fault("reseal")
    return came


async def _rows(world: World, place: Place) -> int:
    asked = select(func.count().label("many")).select_from(table_of(place.table))
    (row,) = await world.database.read(asked)
    return int(row.many)


async def _sealed(world: World, place: Place, rows: Iterable[Picked], came: Resealed) -> None:
    table = table_of(place.table)
    changes: list[Any] = []
    for row in rows:
        key = getattr(row, place.key)
        for column in place.columns:
            old = getattr(row, column)
            if old is None or old.startswith(f"{world.vault.newest}."):
                continue
            try:
                new = world.vault.seal(world.vault.open(old, place.of(key)), place.of(key))
            except Sealed:
                came.closed.append(place.of(key))
                continue
            same = (table.c[place.key] == key, table.c[column] == old)
            changes.append(update(table).where(*same).values({column: new}))

    def unit(turn: Turn) -> int:
        return sum(turn.connection.execute(change).rowcount for change in changes)

    if changes:
        came.done += await world.apply(unit)
