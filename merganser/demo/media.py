"""Small valid pictures, a sound and a film, created without libraries."""

import math
import struct
import zlib
from random import Random

_WATERLINE = 0.55  # as a share of the height
_DC_BITS = bytes((0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0))
_DC_CODES = ("00", "010", "011", "100", "101", "110", "1110", "11110", "111110", "1111110")

Colour = tuple[int, int, int]


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def encode_png(width: int, rows: list[bytes]) -> bytes:
    """Write rows of RGB bytes as a PNG."""
    header = struct.pack(">IIBBBBB", width, len(rows), 8, 2, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows), 6)
    chunks = ((b"IHDR", header), (b"IDAT", content), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(*chunk) for chunk in chunks)


def _mix_colours(low: Colour, high: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
    return red, green, blue


def _random_pond_colours(rng: Random) -> list[Colour]:
    morning = [(250, 200, 150), (120, 160, 220), (60, 110, 130), (20, 50, 70)]
    return [_vary_colour(rng, colour) for colour in morning]


def _vary_colour(rng: Random, colour: Colour) -> Colour:
    red, green, blue = (max(0, min(235, part + rng.randint(-20, 20))) for part in colour)
    return red, green, blue


def _ellipse_row_span(
    y: int, middle: tuple[float, float], radii: tuple[float, float]
) -> tuple[int, int] | None:
    lift = (y - middle[1]) / radii[1]
    if abs(lift) >= 1:
        return None
    half_width = radii[0] * math.sqrt(1 - lift * lift)
    return max(0, round(middle[0] - half_width)), round(middle[0] + half_width)


def _draw_duck_row(row: bytearray, y: int, size: tuple[int, int]) -> None:
    width, height = size
    unit = height / 10
    x, level = width * 0.45, height * 0.62
    shapes: tuple[tuple[tuple[float, float], tuple[float, float], Colour], ...] = (
        ((x + 2.9 * unit, level - 1.5 * unit), (0.9 * unit, 0.3 * unit), (230, 120, 20)),
        ((x, level), (2.2 * unit, 1.2 * unit), (240, 200, 40)),
        ((x + 1.7 * unit, level - 1.6 * unit), (1.0 * unit, 1.0 * unit), (245, 210, 60)),
        ((x + 2.0 * unit, level - 1.9 * unit), (0.2 * unit, 0.2 * unit), (10, 10, 10)),
    )
    for middle, radii, colour in shapes:
        span = _ellipse_row_span(y, middle, radii)
        if span and span[1] < width:
            row[3 * span[0] : 3 * span[1]] = bytes(colour) * (span[1] - span[0])


def draw_pond_png(rng: Random, width: int, height: int, grain: int = 16) -> bytes:
    """Draw a duck on a pond as a PNG. A higher `grain` (1 to 16) makes the file larger."""
    low, top, shallow, deep = _random_pond_colours(rng)
    rows = []
    for y in range(height):
        share = y / height
        if share < _WATERLINE:
            base = _mix_colours(top, low, share / _WATERLINE)
        else:
            base = _mix_colours(shallow, deep, (share - _WATERLINE) / (1 - _WATERLINE))
        row = bytearray(3 * width)
        for channel, level in enumerate(base):
            table = bytes(min(255, level + value % grain) for value in range(256))
            row[channel::3] = rng.randbytes(width).translate(table)
        _draw_duck_row(row, y, (width, height))
        rows.append(bytes(row))
    return encode_png(width, rows)


def encode_gif(width: int, height: int, pixels: list[int]) -> bytes:
    """Write pixels of four colours as a GIF, with a clear code often enough to stay at 3 bits."""
    codes = []
    for at in range(0, len(pixels), 2):
        codes += [4, *pixels[at : at + 2]]
    codes.append(5)
    stream = 0
    for at, code in enumerate(codes):
        stream |= code << (3 * at)
    content = stream.to_bytes((3 * len(codes) + 7) // 8, "little")
    blocks = [content[at : at + 255] for at in range(0, len(content), 255)]
    palette = bytes((255, 255, 255, 40, 90, 110, 240, 200, 40, 20, 30, 40))
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x91, 0, 0) + palette
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02"
    return head + frame + b"".join(bytes((len(block),)) + block for block in blocks) + b"\0;"


def draw_badge_gif(rng: Random) -> bytes:
    """Draw a little round sign in waves as a GIF."""
    side, shift = 32, rng.random() * 6
    pixels = []
    for y in range(side):
        for x in range(side):
            inside = math.hypot(x - 15.5, y - 15.5) < side / 2
            wave = math.sin(x / 3 + shift) * 2 + 18
            pixels.append((1 if y > wave else 2) if inside else 0)
    return encode_gif(side, side, pixels)


def _dc_coefficient_bits(difference: int) -> str:
    size = abs(difference).bit_length()
    value = difference if difference >= 0 else difference + (1 << size) - 1
    return _DC_CODES[size] + (f"{value:0{size}b}" if size else "") + "0"


def _jpeg_segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def encode_jpeg(columns: int, tiles: list[Colour]) -> bytes:
    """Write tiles of 8 by 8 pixels, given as Y, Cb, Cr, as a baseline JPEG without detail."""
    rows = len(tiles) // columns
    frame = struct.pack(">BHHB", 8, rows * 8, columns * 8, 3)
    frame += b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3))
    before = [0, 0, 0]
    stream = []
    for tile in tiles:
        for at, level in enumerate(tile):
            stream.append(_dc_coefficient_bits(level - 128 - before[at]))
            before[at] = level - 128
    bits = "".join(stream)
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    segments = (
        _jpeg_segment(0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0"),
        _jpeg_segment(0xDB, b"\0" + b"\x08" * 64),
        _jpeg_segment(0xC0, frame),
        _jpeg_segment(0xC4, b"\0" + _DC_BITS + bytes(range(12))),
        _jpeg_segment(0xC4, b"\x10\x01" + bytes(15) + b"\0"),
        _jpeg_segment(0xDA, b"\x03\x01\0\x02\0\x03\0\0\x3f\0"),
    )
    return b"\xff\xd8" + b"".join(segments) + scan + b"\xff\xd9"


def draw_mosaic_jpeg(rng: Random) -> bytes:
    """Draw a pond of coloured tiles as a JPEG."""
    columns, rows = rng.randint(20, 32), rng.randint(14, 22)
    tiles: list[Colour] = []
    for y in range(rows):
        sky = y < rows * _WATERLINE
        for _ in range(columns):
            level = rng.randint(170, 200) if sky else rng.randint(70, 110)
            tiles.append((level, 140 if sky else 135, 120 if sky else 110))
    middle = columns * (rows // 2 + 1) + columns // 2
    for at in (middle, middle + 1, middle + 2, middle - 1, middle + 2 - columns):
        tiles[at] = (200, 60, 150)
    return encode_jpeg(columns, tiles)


def synthesize_quack_wav(rng: Random, seconds: float = 0.8) -> bytes:
    """Synthesize the sound of a duck as a WAV file of 8 kHz."""
    rate, pitch = 8000, rng.randint(180, 320)
    count = int(rate * seconds)
    samples = bytearray()
    for at in range(count):
        fade = max(0.0, 1 - (at % 3200) / 2400)
        tone = (at * (pitch - at % 3200 // 80) / rate) % 1 - 0.5
        samples.append(128 + int(90 * fade * tone))
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, rate, 1, 8)
    body = b"WAVE" + head + struct.pack("<4sI", b"data", count) + bytes(samples)
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def _riff_list(kind: bytes, content: bytes) -> bytes:
    return _riff_chunk(b"LIST", kind + content)


def _riff_chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def draw_film_avi(rng: Random, frames: int = 6) -> bytes:
    """Film a light that wanders over dark water, as an AVI of raw pictures."""
    width, height = 32, 24
    size = width * height * 3
    start = rng.randrange(width)
    movie, index = b"", b""
    for at in range(frames):
        picture = bytearray(bytes((70, 50, 20)) * (width * height))
        offset = 3 * (width * (height // 2) + (start + 3 * at) % width)
        picture[offset : offset + 3] = b"\x40\xe0\xff"
        index += struct.pack("<4sIII", b"00db", 0x10, 4 + len(movie), size)
        movie += _riff_chunk(b"00db", bytes(picture))
    main = struct.pack(
        "<14I", 200_000, size * 5, 0, 16, frames, 0, 1, size, width, height, *[0] * 4
    )
    numbers = (0, 0, 0, 0, 1, 5, 0, frames, size, 0, size, 0, 0, width, height)
    stream = struct.pack("<4s4sIHHIIIIIIIIHHHH", b"vids", b"DIB ", *numbers)
    shape = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, size, 0, 0, 0, 0)
    streams = _riff_list(b"strl", _riff_chunk(b"strh", stream) + _riff_chunk(b"strf", shape))
    header = _riff_list(b"hdrl", _riff_chunk(b"avih", main) + streams)
    return _riff_chunk(
        b"RIFF", b"AVI " + header + _riff_list(b"movi", movie) + _riff_chunk(b"idx1", index)
    )
