"""Offsets of base64 characters in text that has line ends."""

import binascii

from mail.storage.blobs.message_layout import Gap


class Lines:
    """Offsets of base64 characters in text with line ends. A quad is four characters."""

    def __init__(self, gap: Gap) -> None:
        self.characters = -(-gap.size // 3) * 4
        wrapping = gap.wrapping
        self.width = (wrapping.width if wrapping else 0) or self.characters
        self.eol = wrapping.eol if wrapping else b""
        self.stride = self.width + len(self.eol)

    def offset(self, character: int) -> int:
        """The offset of a character in the text."""
        return character + character // self.width * len(self.eol)

    def quad_before(self, offset: int) -> int:
        """The last character that begins a quad at or before an offset of the text."""
        row, column = divmod(offset, self.stride)
        return (row * self.width + min(column, self.width - 1)) // 4 * 4

    def quad_after(self, offset: int) -> int:
        """The first character that begins a quad at or after an offset of the text."""
        return min(self.quad_before(max(offset - 1, 0)) + 4, self.characters)

    def text(self, content: bytes, at: int) -> bytes:
        """Encode `content` with line ends; its first character is number `first_character`.

        Each full line is followed by a line end, also the last line of the part: the caller
        cuts it off.
        """
        characters = binascii.b2a_base64(content, newline=False)
        many, begun = len(characters), -at % self.width  # characters until the first line is full
        lines = [characters[:begun]] if begun else []
        lines += [characters[nth : nth + self.width] for nth in range(begun, many, self.width)]
        is_full = many and (at + many) % self.width == 0
        return self.eol.join([*lines, b""] if is_full else lines)
