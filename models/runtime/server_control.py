"""The functions by which operations of a process control its server. The server sets them."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ReloadedConfig:
    """The variables whose values differ from those that are in use."""

    changed_keys: Sequence[str] = ()  # all of them, also those of the next field
    restart_keys: Sequence[str] = ()  # the server must restart to use their new values


class InvalidConfig(Exception):
    """The settings can't be read again. The text names the variable or line, and no value."""


@dataclass(slots=True)
class ServerControl:
    """The control of the server of this process. A command has none."""

    # stops all processes as SIGTERM does; after these seconds the drain time is skipped
    stop_server: Callable[[float], None] | None = None
    check_config: Callable[[], Awaitable[ReloadedConfig]] | None = None  # raises InvalidConfig
    reload_config: Callable[[], Awaitable[ReloadedConfig]] | None = None  # raises InvalidConfig
    # uses this chain and key from now on for TLS of mail listeners; None: only stored certificates
    use_certificate_files: Callable[[Path | None, Path | None], None] | None = None
    folders: dict[str, Path] = field(default_factory=dict)  # by store name, such as "spool"
