"""The image files behind paths, folders and glob patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rtdetr_deploy.errors import ImageError, OptionError
from rtdetr_deploy.files import reason

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif"}
)
NO_IMAGE = f"holds no image; known suffixes are {', '.join(sorted(SUFFIXES))}"

OnUnreadable = Callable[[Path, ImageError], None]
"""Called with a folder that can't be read, and why."""


def find_images(
    sources: Iterable[str | Path], *, skip: Path | None = None, on_unreadable: OnUnreadable | None = None
) -> list[Path]:
    """Return the image files behind paths, folders (searched recursively) and glob patterns, sorted per source.

    A path that names a file is kept whatever its suffix is. Files inside the folder `skip` are not found by searching
    folders and by patterns. Links to folders are not followed. Raises `ImageError` for a source without any image, and
    for a folder inside a source that can't be read; where `on_unreadable` is given, that is called instead.
    """
    search = _Search(skip, on_unreadable)
    found: list[Path] = []
    for source in [sources] if isinstance(sources, (str, Path)) else sources:
        try:
            images, problem = search.find(source)
        except (OSError, ValueError) as error:
            if isinstance(error, OptionError):
                raise
            raise ImageError(f"can't open {source}: {reason(error)}") from error
        if not images:
            raise ImageError(f"{source} {problem}")
        found += images
    return list(dict.fromkeys(found))


class _Search:
    """Looks for image files."""

    def __init__(self, skip: Path | None, on_unreadable: OnUnreadable | None) -> None:
        self._skip = os.path.realpath(skip) if skip is not None else None
        self._on_unreadable = on_unreadable

    def find(self, source: str | Path) -> tuple[list[Path], str]:
        """Return the images behind one source, and what to say where there are none."""
        if source == "":
            raise ImageError("the name of an image is empty; is a shell variable not set?")
        path = Path(source)
        if path.is_dir():
            next(path.iterdir(), None)  # raises where the folder itself can't be read
            skip = self._skip if self._skip != os.path.realpath(path) else None
            files = (folder / name for folder, names in self._walk(path, skip) for name in names)
            return sorted(file for file in files if file.suffix.lower() in SUFFIXES), NO_IMAGE
        if path.exists():
            return [path], ""
        found = {file for file in self._expand(str(path)) if file.is_file() and not self._skips(file)}
        return sorted(found), "does not exist" if glob.escape(str(path)) == str(path) else "matches no file"

    def _skips(self, file: Path) -> bool:
        """Tell whether a file that a pattern found lies in the folder to skip."""
        return self._skip is not None and self._skip in map(os.path.realpath, file.parents)

    def _expand(self, pattern: str) -> Iterator[Path]:
        """Yield what a glob pattern stands for; unlike `glob`, `**` does not follow links, which may form loops."""
        parts = Path(pattern).parts
        if "**" not in parts:
            yield from map(Path, glob.glob(pattern))
            return
        place = parts.index("**")
        before, after = os.path.join(".", *parts[:place]), os.path.join(*(parts[place + 1 :] or ("*",)))
        for base in glob.glob(before):
            for folder, _ in self._walk(Path(base), None, hidden=False):
                yield from self._expand(os.path.join(glob.escape(str(folder)), after))

    def _walk(self, top: Path, skip: str | None, *, hidden: bool = True) -> Iterator[tuple[Path, list[str]]]:
        """Yield the folders below `top` and the names of the files in each, without those in the folder `skip`."""
        for folder, folders, names in os.walk(top, onerror=self._report):
            if not hidden:
                folders[:] = [name for name in folders if not name.startswith(".")]
            if skip is not None:
                folders[:] = [name for name in folders if os.path.realpath(os.path.join(folder, name)) != skip]
            yield Path(folder), names

    def _report(self, error: OSError) -> None:
        folder = Path(error.filename)
        problem = ImageError(f"can't open the folder {folder}: {reason(error)}")
        if self._on_unreadable is None:
            raise problem
        self._on_unreadable(folder, problem)
