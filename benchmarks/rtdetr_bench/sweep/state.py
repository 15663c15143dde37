"""What a sweep has done, kept in its folder after each step: a second call goes on where the first was stopped.

Results lie in parts ("files", "accuracy", "speed"), each with what it was made of: versions, digests of weights and
images, settings. Where that has changed, the part is begun again, and the difference is told.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rtdetr_bench.results import write_json
from rtdetr_deploy import OptionError

Json = dict[str, Any]
NAME = "sweep-state.json"
FORMAT = 1
PARTS = ("files", "accuracy", "speed")


class State:
    """The results in a folder. Raises `OptionError` for a file that is not a sweep's."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._parts = _read(self._path)

    def begin(self, part: str, made_of: Mapping[str, Any]) -> list[str]:
        """Begin or continue a part; return the names of what has changed since, for which its results were dropped."""
        stored = self._parts[part]
        wanted = json.loads(json.dumps(made_of))
        before = stored["made_of"]
        changed = [name for name in {**before, **wanted} if before.get(name) != wanted.get(name)] if before else []
        if changed or not before:
            self._parts[part] = {"made_of": wanted, "done": {}}
        return changed if stored["done"] else []

    def made_of(self, part: str) -> Json:
        """Return what the part's results are made of."""
        return dict(self._parts[part]["made_of"])

    def get(self, part: str, name: str) -> Json | None:
        """Return the result of that name; None where there is none."""
        found: Json | None = self._parts[part]["done"].get(name)
        return found

    def put(self, part: str, name: str, result: Json) -> None:
        """Keep a result, on disk too. Raises `OutputError`."""
        self._parts[part]["done"][name] = result
        write_json(self._path, {"format": FORMAT, "parts": self._parts})

    def forget_failures(self) -> None:
        """Drop the results that say `failed`."""
        for content in self._parts.values():
            content["done"] = {name: one for name, one in content["done"].items() if not one.get("failed")}


def _read(path: Path) -> dict[str, Json]:
    """Return the parts in a file, empty ones where there is none."""
    if not path.exists():
        return {part: {"made_of": {}, "done": {}} for part in PARTS}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}")
        parts = {part: content["parts"][part] for part in PARTS}
        if not all(isinstance(one["made_of"], dict) and isinstance(one["done"], dict) for one in parts.values()):
            raise ValueError("its parts are not as a sweep writes them")
        if not all(isinstance(result, dict) for one in parts.values() for result in one["done"].values()):
            raise ValueError("its results are not as a sweep writes them")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        told = " ".join(str(error).split())[:120]
        raise OptionError(f"can't continue from {path}: {told}; remove it, or choose another `output`") from error
    return parts


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_folder(paths: Iterable[Path]) -> str:
    """Return what changes when images are added, removed, renamed or get another content."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.name}\0{digest_file(path)}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
