"""Fonts for labels: one that has the characters of the class names, or none.

Pillow's own font has little more than ASCII. Where it lacks a character, the fonts installed on the machine are tried,
those of many scripts first; where all lack it, the caller must write something else: a box says nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.files import reason

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

FAMILIES = (
    "dejavusans", "notosans-", "notosanscjk", "notosanssc", "notosanstc", "notosansjp", "notosanskr", "sourcehansans",
    "wqy", "wenquanyi", "droidsansfallback", "arialunicode", "pingfang", "hiragino", "msyh", "simhei", "simsun",
    "msgothic", "malgun", "segoeui", "arial", "liberationsans", "notosans", "notoserif", "freesans", "unifont",
)  # fmt: skip
"""How the names of fonts begin that are tried first, in lower case without spaces and underscores."""

UNASSIGNED = "\uffff"
"""No font has this character: what is drawn for it is drawn for every missing one."""

SAMPLE_SIZE = 16


def open_font(characters: str, size: int, font: str | Path | None = None) -> Font | None:
    """Return a font of `size` pixels that has all `characters`; None where there is none.

    `font` names a file, the only one tried then. Raises `OptionError` when it can't be read.
    """
    wanted = frozenset(characters)
    if font is not None:
        opened = check_font(font)
        return opened.font_variant(size=size) if _lacking(opened, wanted) == 0 else None
    from PIL import ImageFont

    own = _own_font()
    if _lacking(own, wanted) == 0:
        return ImageFont.load_default(size=size)
    found = _find_font(wanted)
    return None if found is None else ImageFont.truetype(str(found), size)


@lru_cache(maxsize=4)
def check_font(font: str | Path) -> FreeTypeFont:
    """Return the font in a file, at some size. Raises `OptionError` when it can't be read."""
    from PIL import ImageFont

    try:
        with Path(font).open("rb"):
            pass
        return ImageFont.truetype(str(font), SAMPLE_SIZE)
    except (OSError, ValueError) as error:
        raise OptionError(f"can't read the font {font}: {reason(error)}; give a .ttf, .otf or .ttc file") from error


@lru_cache(maxsize=1)
def _own_font() -> Font:
    from PIL import ImageFont

    return ImageFont.load_default(size=SAMPLE_SIZE)


@lru_cache(maxsize=256)
def _find_font(characters: frozenset[str]) -> Path | None:
    """Return the first installed font that has all `characters`."""
    from PIL import ImageFont

    for path in _installed_fonts():
        try:
            font = ImageFont.truetype(str(path), SAMPLE_SIZE)
        except (OSError, ValueError):
            continue
        if _lacking(font, characters) == 0 and _distinguishes(font, characters):
            return path
    return None


@lru_cache(maxsize=1)
def _installed_fonts() -> tuple[Path, ...]:
    """Return the font files of this machine, the most promising first."""
    files = {
        Path(folder, name)
        for root in font_folders()
        for folder, _, names in os.walk(root)
        for name in names
        if name.lower().endswith((".ttf", ".otf", ".ttc"))
    }
    return tuple(sorted(files, key=_rank))


def font_folders() -> Iterator[Path]:
    """Yield the folders where systems keep fonts, and matplotlib's where it is installed."""
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", r"C:\Windows"), "Fonts")
    elif sys.platform == "darwin":
        yield from (Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts")
    else:
        yield from (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"))
        yield from (home / ".fonts", home / ".local" / "share" / "fonts")
    matplotlib = find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        yield Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf"


def _rank(path: Path) -> tuple[int, bool, int, str]:
    """Sort known families first, then upright fonts of normal weight, which have the shorter names."""
    name = path.stem.lower().replace(" ", "").replace("_", "")
    family = next((place for place, start in enumerate(FAMILIES) if name.startswith(start)), len(FAMILIES))
    styled = any(word in name for word in ("bold", "italic", "oblique", "thin", "light", "black", "condensed", "mono"))
    return family, styled, len(name), str(path)


def _lacking(font: Font, characters: frozenset[str]) -> int:
    """Return how many of `characters` the font has no picture for."""
    missing = _picture(font, UNASSIGNED)
    return sum(_picture(font, character) == missing for character in characters if character != " ")


def _distinguishes(font: Font, characters: frozenset[str]) -> bool:
    """Tell whether a font draws characters and not the same placeholder for all of them, as fonts of last resort do."""
    wanted = {*characters, "0", "1"} - {" "}
    return len({_picture(font, character) for character in wanted}) > len(wanted) // 2


def _picture(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)
