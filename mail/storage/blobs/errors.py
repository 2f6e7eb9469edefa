"""Errors of stored blobs."""


class CorruptBlob(Exception):
    """Stored bytes were changed or lost. Never shown to a client: a postmaster must look."""


class BytesInBlob(Exception):
    """The requested bytes are not in the message layout, but in the blob with this digest."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"The bytes lie in the piece {digest}")
        self.digest = digest


class ObjectNameTaken(Exception):
    """A folder has the name of the object, or an object has the name of one of its folders."""
