"""Draws a contact sheet: rows of small pictures, with a name and a note beside each row."""

import glob
import importlib.util
import io
import itertools
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

from PIL import Image, ImageDraw, ImageFont

SIDE = 96
"""Longest side of a picture, in pixels."""

_GAP, _NAMES = 6, 230  # between pictures; width of the column of names
_NAME_SIZE, _NOTE_SIZE = 16, 12
_TITLE_HEIGHT, _FOOTER_HEIGHT = 44, 32
_PAPER, _INK, _GRAY, _FRAME = "#ffffff", "#212121", "#616161", "#eeeeee"
_FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")


@dataclass(frozen=True)
class Row:
    """One row: a name, a line of smaller text below it, and pictures of at most SIDE by SIDE pixels."""

    name: str
    note: str
    pictures: Sequence[Image.Image]


def draw_sheet(title: str, rows: Sequence[Row], columns: int, footer: str = "") -> bytes:
    """Returns a contact sheet as PNG.

    Args:
        title: line above the rows.
        rows: from the top.
        columns: number of pictures that each row has room for.
        footer: line below the rows.
    """
    cell = SIDE + _GAP
    size = (_NAMES + columns * cell + _GAP, _TITLE_HEIGHT + len(rows) * cell + (_FOOTER_HEIGHT if footer else 0))
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (_GAP * 2, 12), title, _NAME_SIZE, _INK, size[0] - 4 * _GAP)
    for number, row in enumerate(rows):
        top = _TITLE_HEIGHT + number * cell
        _write(draw, (_GAP * 2, top + 26), row.name, _NAME_SIZE, _INK, _NAMES - 4 * _GAP)
        _write(draw, (_GAP * 2, top + 52), row.note, _NOTE_SIZE, _GRAY, _NAMES - 3 * _GAP)
        for column, picture in enumerate(row.pictures[:columns]):
            left = _NAMES + column * cell
            draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), fill=_FRAME)
            sheet.paste(picture, (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2))
    if footer:
        _write(draw, (_GAP * 2, size[1] - _FOOTER_HEIGHT + 6), footer, _NOTE_SIZE, _GRAY, size[0] - 4 * _GAP)
    encoded = io.BytesIO()
    # Photos hardly shrink: of zlib's strategies this one is the fastest, and the smallest too.
    sheet.save(encoded, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return encoded.getvalue()


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, color: str, width: int) -> None:
    """Writes one line, cut to a width, in a font that has its characters; without any, they are written as escapes."""
    text = "".join(c if c.isprintable() else _escape(c) for c in text[:1000])
    font = next((font for font in _list_fonts(size) if all(_has_glyph(font, c) for c in set(text))), None)
    if font is None:
        font = next(_list_fonts(size))
        text = "".join(c if _has_glyph(font, c) else _escape(c) for c in text)
    if font.getlength(text) > width:
        # A name's start and end tell it from others: labels of one set often begin alike.
        low, high = 1, len(text)
        while low < high:
            kept = (low + high + 1) // 2
            low, high = (kept, high) if font.getlength(_shorten(text, kept)) <= width else (low, kept - 1)
        text = _shorten(text, low)
    draw.text(at, text, color, font)


def _shorten(text: str, kept: int) -> str:
    return f"{text[: kept - kept // 3]}…{text[len(text) - kept // 3 :]}"


def _escape(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode() if not character.isascii() else repr(character)[1:-1]


def _list_fonts(size: int) -> Iterator[ImageFont.FreeTypeFont]:
    """Yields DejaVu Sans, which matplotlib brings; for scripts that it lacks, the system's fonts; and Pillow's own."""
    for path in itertools.chain(_find_own_font(), _find_system_fonts()):
        if font := _load_font(path, size):
            yield font
    yield cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))  # which needs no file


def _find_own_font() -> Iterator[str]:
    spec = importlib.util.find_spec("matplotlib")  # its import would take half a second
    for folder in (spec and spec.submodule_search_locations) or ():
        yield f"{folder}/mpl-data/fonts/ttf/DejaVuSans.ttf"


@cache
def _find_system_fonts() -> list[str]:
    # Unlike Path's methods these take a user without a home, as in a container, and folders that may not be read.
    folders = (os.path.expanduser(folder) for folder in _FONT_FOLDERS)  # noqa: PTH111
    return sorted(path for folder in folders for path in glob.glob(f"{folder}/**/*.[to]t[fc]", recursive=True))  # noqa: PTH207


@cache
def _load_font(path: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(path, size)
    except OSError:  # damaged, or of a kind that FreeType doesn't read
        return None


@cache
def _has_glyph(font: ImageFont.FreeTypeFont, character: str) -> bool:
    """Returns whether a font has a character: what it lacks is drawn as what stands for none, such as a box."""
    lacking = font.getmask("\U0010ffff")
    drawn = font.getmask(character)
    return character == " " or drawn.size != lacking.size or bytes(drawn) != bytes(lacking)
