"""Where the characters of base64 text are among its line ends."""

import binascii

from mail.storage.blobs.message_layout import Gap


class Lines:
    """Where the characters of base64 text lie among its line ends; quads are four characters."""

    def __init__(self, gap: Gap) -> None:
        self.characters = -(-gap.size // 3) * 4
        wrapping = gap.wrapping
        self.width = (wrapping.width if wrapping else 0) or self.characters
        self.eol = wrapping.eol if wrapping else b""
        self.stride = self.width + len(self.eol)

    def offset(self, character: int) -> int:
        """The offset in the text of a character."""
        return character + character // self.width * len(self.eol)

    def quad_before(self, offset: int) -> int:
        """The last character that begins a quad and lies at or before an offset of the text."""
        row, column = divmod(offset, self.stride)
        return (row * self.width + min(column, self.width - 1)) // 4 * 4

    def quad_after(self, offset: int) -> int:
        """The first character that begins a quad and lies at or behind an offset of the text."""
        return min(self.quad_before(max(offset - 1, 0)) + 4, self.characters)

    def text(self, content: bytes, at: int) -> bytes:
        """The text of `content`, whose first character is `at`.

        A line end stands behind each full line, also behind the last of all: for callers to cut.
        """
        characters = binascii.b2a_base64(content, newline=False)
        many, begun = len(characters), -at % self.width  # what is missing of the first line
        lines = [characters[:begun]] if begun else []
        lines += [characters[nth : nth + self.width] for nth in range(begun, many, self.width)]
        is_full = many and (at + many) % self.width == 0
        return self.eol.join([*lines, b""] if is_full else lines)
