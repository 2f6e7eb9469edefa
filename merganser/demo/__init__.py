"""Mail for the demo account, the same every time for the same seed."""

from merganser.demo.postbag import Letter, letters

__all__ = ["Letter", "letters"]
