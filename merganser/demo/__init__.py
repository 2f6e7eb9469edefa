"""Mail for the demo account, the same every time for the same seed."""

from merganser.demo.message_generator import Letter, letters

__all__ = ["Letter", "letters"]
