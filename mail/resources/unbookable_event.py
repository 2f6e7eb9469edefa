"""The reason to decline an invitation."""


class UnbookableEvent(Exception):
    """An event that can't be booked. The reason is the text of the reply to its organizer."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
