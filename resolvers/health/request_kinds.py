"""The requests about health and control that each server process answers."""

from resolvers.health.loaders import LIST_COMPONENTS
from resolvers.health.server_control import RELOAD_CONFIG, STOP_SERVER
from resolvers.health.storage import LIST_STORAGE
from resolvers.health.update import APPLY_COMPONENT_HOLDS

HEALTH_REQUEST_KINDS = (
    APPLY_COMPONENT_HOLDS,
    LIST_COMPONENTS,
    LIST_STORAGE,
    RELOAD_CONFIG,
    STOP_SERVER,
)
