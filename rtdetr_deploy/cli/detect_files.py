"""Detection over many image files: annotated pictures, JSON lines, counts and times."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, TextIO

from rtdetr_deploy.artifacts.class_names import Classes
from rtdetr_deploy.cli.json_lines import JsonLines, open_json_lines
from rtdetr_deploy.detections import Detections
from rtdetr_deploy.errors import ImageError, OutputError, RtdetrError
from rtdetr_deploy.files import atomic_write, check_writable, refuse_overwriting
from rtdetr_deploy.images.find import find_images
from rtdetr_deploy.images.frame import Frame
from rtdetr_deploy.stream import Found, Unreadable
from rtdetr_deploy.words import plural, printable

if TYPE_CHECKING:
    from rtdetr_deploy.predictor import Predictor

STAGES = ("load", "prepare", "infer", "decode", "draw")
JPEG_SUFFIXES = frozenset({".jpg", ".jpeg"})

OnImage = Callable[[Path, Detections | RtdetrError], None]
"""Called for every image with its detections, or with the error for which it was skipped (`ImageError`); then with an
`OutputError` where its picture can't be written. Also called for folders that can't be read."""


@dataclass
class Summary:
    """Images done and skipped, detections per class name, seconds per stage (one entry per image).

    Folders that can't be read count as skipped; `unwritten` counts annotated pictures that could not be written.
    """

    done: int = 0
    skipped: int = 0
    unwritten: int = 0
    interrupted: bool = False
    found: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def count(self, found: Found) -> None:
        """Add what was found in an image, and how long it took."""
        self.done += 1
        self.found.update(found.detections.names)
        for stage, seconds in found.seconds.items():
            self.seconds[stage].append(seconds)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note how long the block took."""
        start = time.perf_counter()
        yield
        self.seconds[stage].append(time.perf_counter() - start)

    def __str__(self) -> str:
        parts = [plural(self.done, "image")]
        parts += [f"{self.skipped} skipped"] if self.skipped else []
        parts += [f"{plural(self.unwritten, 'picture')} not written"] if self.unwritten else []
        parts.append(plural(self.found.total(), "detection"))
        counts = ", ".join(f"{count} {printable(name)}" for name, count in self.found.most_common())
        lines = [", ".join(parts) + (f": {counts}" if counts else "")]
        times = [f"{stage} {1000 * median(self.seconds[stage]):.1f}" for stage in STAGES if self.seconds[stage]]
        if times:
            lines.append(f"milliseconds per image (median): {'   '.join(times)}")
        return "\n".join(lines)


def check_targets(output: Path | None, json_lines: Path | None) -> None:
    """Raise `OutputError` when pictures in the folder `output`, or the JSON lines, could not be written."""
    if output is not None:
        check_writable(output, folder=True)
    if json_lines is not None:
        check_writable(json_lines)
    if output is not None and json_lines is not None:
        folder, file = output.resolve(), json_lines.resolve()
        if file in (folder, *folder.parents):
            raise OutputError(f"`json_lines` {json_lines} would be a file where `output` {output} needs a folder")


def detect_files(
    predictor: Predictor,
    sources: Sequence[str | Path],
    *,
    classes: Classes | None = None,
    output: str | Path | None = None,
    json_lines: str | Path | TextIO | None = None,
    font: str | Path | None = None,
    on_image: OnImage | None = None,
    progress: bool = False,
) -> Summary:
    """Detect in every image of `sources` (files, folders, glob patterns).

    Annotated pictures go into the folder `output`, with labels in `font` (see `Detections.draw`); `json_lines` gets one
    JSON object per image: `image`, `width`, `height`, and `detections` as in `Detections.to_dicts`. An image or folder
    that can't be read is counted and skipped; a picture that can't be written is counted. Pictures that lie in `output`
    from an earlier run are not taken for images when a folder is searched.

    After an interrupt (Ctrl-C) what was done is kept and the summary says so; after an error the JSON lines of the
    images before it are kept.

    Raises `ImageError` when a source holds no image, `OutputError` when the JSON lines can't be written or a file would
    replace an image, `ArtifactError` when the model fails.
    """
    from tqdm import tqdm

    output = Path(output) if output is not None else None
    json_lines = Path(json_lines) if isinstance(json_lines, str) else json_lines
    target = json_lines if isinstance(json_lines, Path) else None
    check_targets(output, target)
    classes = predictor.labels_of(classes)
    run = _Run(output, font, on_image)
    images = find_images(sources, skip=output, on_unreadable=run.skip)
    refuse_overwriting({"`json_lines`": target}, images)
    names = _output_names(images, output, target)
    predictor.warmup(1)
    with ExitStack() as stack:
        lines = open_json_lines(json_lines, stack)
        failure: Exception | None = None
        found = predictor.stream_results(images, classes=classes, whole_frames=output is not None)
        results = stack.enter_context(closing(found))
        bar = tqdm(results, total=len(images), unit="image", leave=False, disable=not progress)
        try:
            for path, result in zip(images, bar, strict=True):
                if isinstance(result, Unreadable):
                    run.skip(path, result.error)
                else:
                    run.keep(path, result, lines, names.get(path))
        except KeyboardInterrupt:
            if run.summary.done == 0:
                raise
            run.summary.interrupted = True
        except Exception as error:
            if run.summary.done == 0:  # there is nothing to keep
                raise
            failure = error
    if failure is not None:
        raise failure
    return run.summary


class _Run:
    """What comes of the images, one after the other."""

    def __init__(self, output: Path | None, font: str | Path | None, on_image: OnImage | None) -> None:
        self.summary = Summary()
        self._output, self._font = output, font
        self._report = on_image if on_image is not None else lambda _path, _result: None

    def skip(self, path: Path, error: ImageError) -> None:
        """Count and report what can't be read."""
        self.summary.skipped += 1
        self._report(path, error)

    def keep(self, path: Path, found: Found, lines: JsonLines | None, name: str | None) -> None:
        """Append an image's JSON to `lines`, and write its picture as `name` into the output folder."""
        assert isinstance(found.frame, Frame), "files are decoded on the CPU"
        if lines is not None:
            lines.append(path, found.frame, found.detections)
        self.summary.count(found)
        self._report(path, found.detections)
        if self._output is not None and name is not None:
            try:
                with self.summary.timed("draw"):
                    _write_picture(self._output / name, found.frame, found.detections, self._font)
            except OutputError as error:
                self.summary.unwritten += 1
                self._report(path, error)


def _write_picture(path: Path, frame: Frame, detections: Detections, font: str | Path | None) -> None:
    picture = detections.draw(frame, font=font)
    with atomic_write(path) as beside:
        if path.suffix in JPEG_SUFFIXES:
            picture.save(beside, quality=92)
        else:
            picture.save(beside)


def _output_names(images: Sequence[Path], output: Path | None, json_lines: Path | None) -> dict[Path, str]:
    """Return a file name per image: JPEG stays JPEG, all else becomes PNG, doubles are numbered.

    Raises `OutputError` where a picture would replace one of the images or the JSON lines.
    """
    names: dict[Path, str] = {}
    if output is None:
        return names
    taken: set[str] = set()
    inputs = {path.resolve() for path in images}
    lines = json_lines.resolve() if json_lines is not None else None
    for path in images:
        suffix = path.suffix.lower() if path.suffix.lower() in JPEG_SUFFIXES else ".png"
        name, number = f"{path.stem}{suffix}", 2
        while name in taken:
            name, number = f"{path.stem}-{number}{suffix}", number + 1
        taken.add(name)
        names[path] = name
        picture = (output / name).resolve()
        if picture in inputs:
            raise OutputError(f"annotated pictures would overwrite {output / name}; choose another `output` folder")
        if picture == lines:
            raise OutputError(f"`json_lines` and an annotated picture both name {output / name}; choose another file")
    return names
