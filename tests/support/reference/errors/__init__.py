"""The errors that each root field can return, read from the code."""
