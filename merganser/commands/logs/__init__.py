"""The command `merganser log`."""
