"""Which bus takes wake-ups to other processes, as the settings say."""
# ruff: noqa: PLC0415 - what a bus needs is installed where it is used

import hashlib
import hmac
from pathlib import Path
from urllib.parse import urlsplit

from merganser.errors import MISUSED, Trouble
from merganser.settings.settings import DRIVERS, PREFIX, Settings, driven
from models.events.bus import Bus
from models.events.bus.local_bus import LocalBus
from models.events.wakeups import Shared, Wakeups
from models.store.postgres.address import is_postgres


def wakeups(settings: Settings, secret: bytes) -> Wakeups:
    """The bells of a process, and the bus on which others hear them."""
    asked = settings.wakeups.get_secret_value()
    if asked == "auto":
        asked = "postgresql" if is_postgres(settings.store) else "unix"
    return Wakeups() if asked == "process" else Shared(_bus(settings, asked, secret))


def _bus(settings: Settings, asked: str, secret: bytes) -> Bus:
    parts = urlsplit(asked)
    kind = parts.scheme or asked
    channel = f"merganser.{hmac.digest(secret, b'wakeups', hashlib.sha256).hex()[:16]}"
    try:
        if kind == "unix":
            return LocalBus(
                Path(parts.path) if parts.path.startswith("/") else settings.data / "bells"
            )
        if kind in DRIVERS:
            from models.events.bus.postgres_bus import PostgresBus

            return PostgresBus(settings.store if asked == "postgresql" else driven(asked))
        if kind in ("redis", "rediss"):
            from models.events.bus.redis_bus import RedisBus

            return RedisBus(asked, channel)
        from models.events.bus.nats_bus import NatsBus

        return NatsBus(asked, channel)
    except ModuleNotFoundError as problem:
        extra = {"redis": "redis", "nats": "nats"}.get(
            str(problem.name).partition(".")[0], "postgres"
        )
        text = f"{PREFIX}WAKEUPS needs {problem.name}: pip install 'merganser[{extra}]'"
        raise Trouble(text, code=MISUSED) from problem
    except (OSError, ValueError) as problem:
        raise Trouble(f"{PREFIX}WAKEUPS cannot be used: {problem}", code=MISUSED) from problem
