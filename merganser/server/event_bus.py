"""Create the event bus that the settings choose for wake-ups between processes."""

import hashlib
import hmac
from pathlib import Path
from urllib.parse import urlsplit

from merganser.errors import EXIT_USAGE, CommandError
from merganser.settings.settings import DRIVER_BY_SCHEME, PREFIX, Settings, database_url_with_driver
from models.events.bus import EventBus
from models.events.bus.local_bus import LocalBus
from models.events.wakeups import BusWakeups, Wakeups
from models.store.postgres.address import is_postgres


def create_wakeups(settings: Settings, secret: bytes) -> Wakeups:
    """Create the wake-ups of a process, and the event bus that sends them to other processes.

    Raises CommandError if the setting can't be used or a package is missing.
    """
    bus_setting = settings.event_bus_url.get_secret_value()
    if bus_setting == "auto":
        bus_setting = "postgresql" if is_postgres(settings.database_url) else "unix"
    return (
        Wakeups()
        if bus_setting == "process"
        else BusWakeups(_create_event_bus(settings, bus_setting, secret))
    )


def _create_event_bus(settings: Settings, bus_setting: str, secret: bytes) -> EventBus:
    parts = urlsplit(bus_setting)
    kind = parts.scheme or bus_setting
    channel = f"merganser.{hmac.digest(secret, b'wakeups', hashlib.sha256).hex()[:16]}"
    try:
        if kind == "unix":
            return LocalBus(
                Path(parts.path) if parts.path.startswith("/") else settings.data / "bells"
            )
        if kind in DRIVER_BY_SCHEME:
            # asyncpg is an optional dependency
            from models.events.bus.postgres_bus import PostgresBus  # noqa: PLC0415

            return PostgresBus(
                settings.database_url
                if bus_setting == "postgresql"
                else database_url_with_driver(bus_setting)
            )
        if kind in ("redis", "rediss"):
            # redis is an optional dependency
            from models.events.bus.redis_bus import RedisBus  # noqa: PLC0415

            return RedisBus(bus_setting, channel)
        # nats-py is an optional dependency
        from models.events.bus.nats_bus import NatsBus  # noqa: PLC0415

        return NatsBus(bus_setting, channel)
    except ModuleNotFoundError as problem:
        extra = {"redis": "redis", "nats": "nats"}.get(
            str(problem.name).partition(".")[0], "postgres"
        )
        text = f"{PREFIX}EVENT_BUS_URL requires {problem.name}: pip install 'merganser[{extra}]'"
        raise CommandError(text, exit_code=EXIT_USAGE) from problem
    except (OSError, ValueError) as problem:
        raise CommandError(
            f"{PREFIX}EVENT_BUS_URL cannot be used: {str(problem).rstrip('.')}.",
            exit_code=EXIT_USAGE,
        ) from problem
