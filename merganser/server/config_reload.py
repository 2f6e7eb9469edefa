"""Reading of settings while the server runs: by configReload, and after SIGHUP."""

import asyncio
from dataclasses import fields

from merganser.errors import CommandError
from merganser.server.processes.process_shares import settings_with_process_share_of_limits
from merganser.server.smtp_listeners import (
    load_certificate_files,
    require_certificate_for_submission,
)
from merganser.settings.demo_settings import demo_settings
from merganser.settings.settings import PREFIX, Settings, read_settings
from models.runtime.environment import Environment
from models.runtime.options import Options
from models.runtime.server_control import InvalidConfig, ReloadedConfig
from resolvers.admin import settings as admin_settings
from resolvers.admin.setting_definitions import DEFINITIONS

# Options that a process reads at its start, and not again at each use.
START_OPTIONS = frozenset(
    {
        "argon2_memory_cost", "disk_reserve", "dns_resolver", "dnssec_trusted", "hostname",
        "next_hop", "offline_sink", "password_hashing_memory", "submission_listen",
        "submission_tls_listen",
        # the allocated quota of domains depends on it: settingSet and a start count it again
        "users_default_quota",
    }
    | {definition.option for definition in DEFINITIONS.values() if definition.restart_required}
)  # fmt: skip
CERTIFICATE_FIELDS = frozenset({"tls_cert", "tls_key"})
RELOADABLE_FIELDS = CERTIFICATE_FIELDS | {
    option.name
    for option in fields(Options)
    if option.name in Settings.model_fields and option.name not in START_OPTIONS
}


def with_reloadable_values(current: Settings, latest: Settings) -> Settings:
    """Return the current settings with those values of the latest that need no restart."""
    values = {name: getattr(latest, name) for name in RELOADABLE_FIELDS}
    return current.model_copy(update=values)


class ConfigReloader:
    """Reads the settings again, and applies those that need no restart.

    `current` has the settings in use, with the limits of one of `process_count` processes.
    """

    def __init__(self, current: Settings, environment: Environment, process_count: int) -> None:
        self._current = current
        self._environment = environment
        self._process_count = process_count
        self._lock = asyncio.Lock()

    async def check(self) -> ReloadedConfig:
        """Read the settings and files; return which settings have changed. Raises InvalidConfig."""
        return _differences(self._current, await self._read_and_check_latest())

    async def reload(self) -> ReloadedConfig:
        """Read the settings, and use those that need no restart. Raises InvalidConfig.

        Values stored by settingSet precede them. The workers look for changed certificates.
        """
        async with self._lock:
            latest = await self._read_and_check_latest()
            reloaded = _differences(self._current, latest)
            former, self._current = self._current, with_reloadable_values(self._current, latest)
            use_certificate_files = self._environment.server_control.use_certificate_files
            if use_certificate_files and CERTIFICATE_FIELDS & _changed_fields(former, latest):
                use_certificate_files(latest.tls_cert, latest.tls_key)
            self._environment.use_initial_options(self._current.options())
            await admin_settings.apply_stored_settings_and_list_invalid(self._environment)
            self._environment.wakeups.wake_workers()
            return reloaded

    async def _read_and_check_latest(self) -> Settings:
        try:
            latest = await asyncio.to_thread(_read_settings_and_certificate)
            await require_certificate_for_submission(latest, self._environment)
        except CommandError as problem:
            raise InvalidConfig(problem.message) from problem
        if self._current.offline_sink is not None:
            latest = demo_settings(latest)
        return settings_with_process_share_of_limits(latest, self._process_count)


def _read_settings_and_certificate() -> Settings:
    latest = read_settings()
    load_certificate_files(latest)
    return latest


def _changed_fields(current: Settings, latest: Settings) -> set[str]:
    return {
        name for name in Settings.model_fields if getattr(current, name) != getattr(latest, name)
    }


def _differences(current: Settings, latest: Settings) -> ReloadedConfig:
    changed = sorted(_changed_fields(current, latest))
    return ReloadedConfig(
        [_variable(name) for name in changed],
        [_variable(name) for name in changed if name not in RELOADABLE_FIELDS],
    )


def _variable(name: str) -> str:
    return (PREFIX + name).upper()
