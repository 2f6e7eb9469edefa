"""The secret box contexts that the passwords of relay hosts and transports are encrypted for."""


def place_of_relay(key: int) -> str:
    """The context of a relay host's password."""
    return f"relay:{key}"


def place_of_transport(key: int) -> str:
    """The context of a transport's password."""
    return f"transport:{key}"
