"""For which place the password of a way out is sealed."""


def place_of_relay(key: int) -> str:
    """That of a relay host."""
    return f"relay:{key}"


def place_of_transport(key: int) -> str:
    """That of a transport."""
    return f"transport:{key}"
