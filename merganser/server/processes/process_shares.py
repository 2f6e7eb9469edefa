"""What one of several processes allows: its share of what the settings allow all of them."""

from typing import Any

from merganser.settings.settings import Settings

# The kernel spreads connections by chance, and one that stays open is always at the same process:
# below these a share would turn away who keeps to the limit. They are no more than the limit.
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
    """One of so many parts of the whole, rounded down, but no less than that; 0 stays 0."""
    return min(whole, max(whole // many, least))


def shared(settings: Settings, many: int) -> Settings:
    """The settings of one of so many processes that listen."""
    parts: dict[str, Any] = {
        name: share(getattr(settings, name), many, least) for name, least in LEAST.items()
    }
    return settings.model_copy(update=parts)
