"""Limits of one process: its share of the limits that the settings set for the server."""

from typing import Any

from merganser.settings.settings import Settings

# The kernel spreads connections at random, and an open connection stays with its process. A share
# below these values would reject clients that keep to the limit. A share never exceeds the limit.
MIN_SHARE_BY_SETTING = {
    "login_memory": 0,
    "connections": 100,
    "connections_each": 16,
    "followers_each": 16,
    "operations": 100,
    "operations_each": 16,
    "smtp_connections": 20,
    "smtp_connections_each": 10,
    "smtp_network_rate": 100,
    "smtp_mailbox_rate": 20,
    "budget_strangers": 25,
    "budget_users": 250,
    "budget_admins": 5000,
}


def limit_of_process(total: int, process_count: int, minimum: int = 0) -> int:
    """Divide a limit by the number of processes, rounded down.

    The result is at least `minimum` and at most `total`.
    """
    return min(total, max(total // process_count, minimum))


def settings_of_process(settings: Settings, process_count: int) -> Settings:
    """The settings with the limits of one of several listening processes."""
    limits: dict[str, Any] = {
        name: limit_of_process(getattr(settings, name), process_count, min_share)
        for name, min_share in MIN_SHARE_BY_SETTING.items()
    }
    return settings.model_copy(update=limits)
