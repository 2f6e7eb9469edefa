"""The settings of a demo server, which sends nothing to other machines."""

from merganser.settings.settings import Settings
from models.runtime.options import NO_NAME_SERVER

SINK_FOLDER = "outgoing-mail"  # in the data folder
# Pages of a development server on this machine can call a demo server.
LOOPBACK_ORIGINS = ("http://localhost:*", "http://127.0.0.1:*")


def demo_settings(settings: Settings) -> Settings:
    """Return the settings with the values that a demo server always has.

    Outgoing mail is written into a folder. No DNS query is sent, and users can make the server
    connect to this machine only. Web pages of this machine can call the server.
    """
    origins = dict.fromkeys((*settings.cors_origins, *LOOPBACK_ORIGINS))
    return settings.model_copy(
        update={
            "offline_sink": settings.data / SINK_FOLDER,
            "dns_resolver": NO_NAME_SERVER,
            "breached_passwords_url": None,
            "acme_terms_agreed": False,
            "cors_origins": ("*",) if "*" in origins else tuple(origins),
        }
    )
