"""What can go wrong with stored bytes."""


class Corrupt(Exception):
    """Stored bytes are not what was stored. Never shown to a client: a postmaster must look."""


class Hole(Exception):
    """The wanted bytes are not in the skeleton, but in the piece with this digest."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"The bytes lie in the piece {digest}")
        self.digest = digest
