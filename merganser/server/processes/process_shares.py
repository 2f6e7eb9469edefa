"""Limits of one process: its share of the limits that the settings set for the server."""

from typing import Any

from merganser.settings.settings import Settings

# The kernel spreads connections at random, and an open connection stays with its process. A share
# below these values would reject clients that keep to the limit. A share never exceeds the limit.
LEAST = {
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


def share(whole: int, many: int, least: int = 0) -> int:
    """Divide a limit by the number of processes, rounded down.

    The result is at least `minimum` and at most `total`.
    """
    return min(whole, max(whole // many, least))


def shared(settings: Settings, many: int) -> Settings:
    """The settings with the limits of one of several listening processes."""
    limits: dict[str, Any] = {
        name: share(getattr(settings, name), many, least) for name, least in LEAST.items()
    }
    return settings.model_copy(update=limits)
