"""Messages of the demo account. The same seed gives the same messages."""

from merganser.demo.message_generator import DemoMessage, generate_messages

__all__ = ["DemoMessage", "generate_messages"]
