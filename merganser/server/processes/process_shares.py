"""Limits of one process: its share of the limits that the settings set for the server."""

from typing import Any

from merganser.settings.settings import Settings

# The kernel spreads connections at random, and an open connection stays with its process. A share
# below these values would reject clients that keep to the limit. A share never exceeds the limit.
MIN_SHARE_BY_SETTING = {
    "password_hashing_memory": 0,
    "http_connections": 100,
    "http_connections_per_client": 16,
    "subscriptions_per_user": 16,
    "concurrent_operations": 100,
    "concurrent_operations_per_client": 16,
    "smtp_connections": 20,
    "smtp_connections_per_client": 10,
    "smtp_messages_per_hour_per_network": 100,
    "smtp_messages_per_hour_per_account": 20,
    "cost_budget_anonymous": 25,
    "cost_budget_user": 250,
    "cost_budget_admin": 5000,
}


def limit_of_process(total: int, process_count: int, minimum: int = 0) -> int:
    """Divide a limit by the number of processes, rounded down.

    The result is at least `minimum` and at most `total`.
    """
    return min(total, max(total // process_count, minimum))


def settings_with_process_share_of_limits(settings: Settings, process_count: int) -> Settings:
    """The settings with the limits of one of several listening processes."""
    limits: dict[str, Any] = {
        name: limit_of_process(getattr(settings, name), process_count, min_share)
        for name, min_share in MIN_SHARE_BY_SETTING.items()
    }
    return settings.model_copy(update=limits)
