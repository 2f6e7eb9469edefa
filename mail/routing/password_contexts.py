"""The secret box contexts that the passwords of relay hosts and transports are encrypted for."""


def relay_host_context(relay_host_id: int) -> str:
    """The context of a relay host's password."""
    return f"relay:{relay_host_id}"


def transport_context(transport_id: int) -> str:
    """The context of a transport's password."""
    return f"transport:{transport_id}"
