"""Messages of the demo account. The same seed gives the same messages."""

from merganser.demo.message_generator import Letter, letters

__all__ = ["Letter", "letters"]
