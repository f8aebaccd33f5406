"""Fonts for any script: the first font that has all characters of a text, or escapes for those that none has."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

from PIL import ImageFont

from .errors import from_signal_handler

FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts",  # Linux
           "/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts",  # macOS
           "C:/Windows/Fonts", "~/AppData/Local/Microsoft/Windows/Fonts")  # Windows
SYSTEM_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf",
    "wqy-microhei.ttc", "DroidSansFallbackFull.ttf", "NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf", "NotoSansThai-Regular.ttf", "unifont.otf",  # Linux
    "Arial Unicode.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc",  # macOS
    "segoeui.ttf", "msyh.ttc", "YuGothM.ttc", "malgun.ttf", "Nirmala.ttf", "LeelawUI.ttf", "seguisym.ttf")  # Windows
SCORE = "0123456789.…"  # characters of a tag besides the label
MISSING = "\U0010fffe"  # a code point without a character: its glyph is the one for missing characters


def choose(label: str, size: float, names: Sequence[str] = SYSTEM_FONTS) -> tuple[ImageFont.FreeTypeFont, str]:
    """Choose a font for a label.

    Args:
        label: any text. Characters that cannot be printed become spaces.
        size: font size in pixels.
        names: file names of fonts to try after Pillow's own, in this order. Fonts that this system lacks, and those
            without digits for the score, are skipped.

    Returns:
        The font that lacks the fewest characters, and the text. There, each missing character is an escape such as
        "U+732B", never an empty box.
    """
    text = "".join(c if c.isprintable() else " " for c in label)
    best, missing = _default(size), _lacking(_default(size), text)
    for name in names:
        if not missing:
            break
        font = _named(name, size)
        if font and not _lacking(font, SCORE) and len(lacking := _lacking(font, text)) < len(missing):
            best, missing = font, lacking
    if missing:
        text = "".join(f" U+{ord(c):04X} " if c in missing else c for c in text)
        text = " ".join(text.split())
    return best, text


@functools.lru_cache(16)
def _default(size):
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # so it is if a size is given
    return font


def _named(name, size):
    """A font of this system; None if it lacks it. By a name alone, Pillow could open a file of the working folder."""
    path = _paths().get(name)
    try:
        return path and _opened(path, size)
    except OSError as error:  # not a font, or not readable
        if from_signal_handler(error):
            raise
        return None


@functools.lru_cache(64)
def _opened(path, size):
    return ImageFont.truetype(path, size)


@functools.cache
def _paths():
    """{file name: path} of the fonts of this system among SYSTEM_FONTS."""
    return {name: os.path.join(folder, name) for top in FOLDERS for folder, _, names in os.walk(os.path.expanduser(top))
            for name in names if name in SYSTEM_FONTS}


def _lacking(font, text):
    """Characters of a text that a font draws as it draws a missing one."""
    empty = _glyph(font, MISSING)
    return {c for c in set(text) if not c.isspace() and _glyph(font, c) == empty}


def _glyph(font, character):
    mask = _plain(font).getmask(character)
    return mask.size, bytes(mask)


@functools.lru_cache(64)
def _plain(font):
    """The font without text shaping, which adds a second glyph to a combining character on its own."""
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)
