"""Fonts for any script: the first font that has all characters of a text, or escapes for those that none has."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from PIL import ImageFont

from .errors import from_signal_handler

SYSTEM_FONTS = (  # Pillow searches the system's folders for these names
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf",
    "wqy-microhei.ttc", "DroidSansFallbackFull.ttf", "NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf", "NotoSansThai-Regular.ttf", "unifont.otf",  # Linux
    "Arial Unicode.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc",  # macOS
    "segoeui.ttf", "msyh.ttc", "YuGothM.ttc", "malgun.ttf", "Nirmala.ttf", "LeelawUI.ttf", "seguisym.ttf")  # Windows
MISSING = "\U0010fffe"  # a code point without a character: its glyph is the one for missing characters


def choose(label: str, size: float, names: Sequence[str] = SYSTEM_FONTS) -> tuple[ImageFont.FreeTypeFont, str]:
    """Choose a font for a label.

    Args:
        label: any text. Characters that cannot be printed become spaces.
        size: font size in pixels.
        names: file names of fonts to try after Pillow's own, in this order. Names that do not exist are skipped.

    Returns:
        The font that lacks the fewest characters, and the text. There, each missing character is an escape such as
        "U+732B", never an empty box.
    """
    text = "".join(c if c.isprintable() else " " for c in label)
    best, missing = _default(size), _lacking(_default(size), text)
    for name in names:
        if not missing:
            break
        if (font := _named(name, size)) and len(lacking := _lacking(font, text)) < len(missing):
            best, missing = font, lacking
    if missing:
        text = "".join(f" U+{ord(c):04X} " if c in missing else c for c in text)
        text = " ".join(text.split())
    return best, text


@functools.lru_cache(16)
def _default(size):
    return ImageFont.load_default(size=size)


@functools.lru_cache(64)
def _named(name, size):
    try:
        return ImageFont.truetype(name, size)
    except OSError as error:
        if from_signal_handler(error):
            raise
        return None


def _lacking(font, text):
    """Characters of a text that a font draws as it draws a missing one."""
    empty = _glyph(font, MISSING)
    return {c for c in set(text) if not c.isspace() and _glyph(font, c) == empty}


def _glyph(font, character):
    mask = font.getmask(character)
    return mask.size, bytes(mask)
