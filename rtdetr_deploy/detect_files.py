"""Detection over many image files: annotated pictures, JSON lines, counts and times."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, TextIO

from rtdetr_deploy.detections import Detections
from rtdetr_deploy.errors import ImageError, OutputError
from rtdetr_deploy.files import written_beside
from rtdetr_deploy.sources import Frame, find_images

if TYPE_CHECKING:
    from rtdetr_deploy.predictor import Classes, Predictor

STAGES = ("load", "prepare", "infer", "decode", "draw")
JPEG_SUFFIXES = frozenset({".jpg", ".jpeg"})

OnImage = Callable[[Path, Detections | ImageError], None]
"""Called for every image with its detections, or with the error for which it was skipped."""


@dataclass
class Summary:
    """Images done and skipped, detections per class name, seconds per stage (one entry per image)."""

    done: int = 0
    skipped: int = 0
    interrupted: bool = False
    found: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note how long the block took."""
        start = time.perf_counter()
        yield
        self.seconds[stage].append(time.perf_counter() - start)

    def __str__(self) -> str:
        images = f"{self.done} image{'s' * (self.done != 1)}" + (f", {self.skipped} skipped" if self.skipped else "")
        counts = ", ".join(f"{count} {name}" for name, count in self.found.most_common())
        lines = [f"{images}, {self.found.total()} detections" + (f": {counts}" if counts else "")]
        times = [f"{stage} {1000 * median(self.seconds[stage]):.1f}" for stage in STAGES if self.seconds[stage]]
        if times:
            lines.append(f"milliseconds per image (median): {'   '.join(times)}")
        return "\n".join(lines)


def detect_files(
    predictor: Predictor,
    sources: Sequence[str | Path],
    *,
    classes: Classes | None = None,
    output: Path | None = None,
    json_lines: Path | TextIO | None = None,
    on_image: OnImage | None = None,
    progress: bool = False,
) -> Summary:
    """Detect in every image of `sources` (files, folders, glob patterns).

    Annotated pictures go into the folder `output`; `json_lines` gets one JSON object per image: `image`, `width`,
    `height`, and `detections` as in `Detections.to_dicts`. An image that can't be read is counted and skipped. After
    an interrupt (Ctrl-C) what was done is kept and the summary says so. Pictures that lie in `output` from an earlier
    run are not taken for images when a folder is searched.

    Raises `ImageError` when a source holds no image, `OutputError` when a result can't be written or would replace an
    image; the JSON lines are then discarded.
    """
    from tqdm import tqdm

    images = find_images(sources, skip=output)
    names = _output_names(images, output)
    if isinstance(json_lines, Path) and json_lines.resolve() in {path.resolve() for path in images}:
        raise OutputError(f"the JSON lines would overwrite the image {json_lines}; choose another --json file")
    predictor.labels_of(classes)
    predictor.warmup(1)
    summary = Summary()
    with ExitStack() as stack:
        lines = _open_lines(json_lines, stack)
        target = str(json_lines) if isinstance(json_lines, Path) else "standard output"
        try:
            for path in tqdm(images, unit="image", leave=False, disable=not progress):
                try:
                    frame, detections = _detect_file(predictor, path, summary, classes)
                except ImageError as error:
                    summary.skipped += 1
                    if on_image is not None:
                        on_image(path, error)
                    continue
                if lines is not None:
                    _write_line(lines, target, path, frame, detections)
                if output is not None:
                    with summary.timed("draw"):
                        _write_picture(output / names[path], frame, detections)
                if on_image is not None:
                    on_image(path, detections)
        except KeyboardInterrupt:
            summary.interrupted = True
    return summary


def _detect_file(
    predictor: Predictor, path: Path, summary: Summary, classes: Classes | None
) -> tuple[Frame, Detections]:
    with summary.timed("load"):
        (frame,) = predictor.load([path])
    with summary.timed("prepare"):
        batch = predictor.prepare([frame])
    with summary.timed("infer"):
        outputs = predictor.infer(batch)
    with summary.timed("decode"):
        (detections,) = predictor.decode(outputs, [frame.size], classes=classes)
    summary.done += 1
    summary.found.update(detections.names)
    return frame, detections


def _open_lines(target: Path | TextIO | None, stack: ExitStack) -> TextIO | None:
    if not isinstance(target, Path):
        return target
    if target.exists() and not target.is_file() and not target.is_dir():  # a pipe or device can't be replaced
        try:
            return stack.enter_context(target.open("w", encoding="utf-8"))
        except OSError as error:
            raise OutputError(f"can't write {target}: {error.strerror or error}") from error
    beside = stack.enter_context(written_beside(target))
    return stack.enter_context(beside.open("w", encoding="utf-8"))


def _write_line(lines: TextIO, target: str, path: Path, frame: Frame, detections: Detections) -> None:
    height, width = frame.size
    entry = {"image": str(path), "width": width, "height": height, "detections": detections.to_dicts()}
    try:
        lines.write(json.dumps(entry) + "\n")  # ASCII: file names may be no valid UTF-8
        lines.flush()  # whoever reads a pipe gets each image as it is done
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"can't write {target}: {error.strerror or error}") from error


def _write_picture(path: Path, frame: Frame, detections: Detections) -> None:
    picture = detections.draw(frame.to_rgb(), color="rgb")
    with written_beside(path) as beside:
        if path.suffix in JPEG_SUFFIXES:
            picture.save(beside, quality=92)
        else:
            picture.save(beside)


def _output_names(images: Sequence[Path], output: Path | None) -> dict[Path, str]:
    """Return a file name per image: JPEG stays JPEG, all else becomes PNG, doubles are numbered.

    Raises `OutputError` where a picture would replace one of the images.
    """
    names: dict[Path, str] = {}
    if output is None:
        return names
    taken: set[str] = set()
    inputs = {path.resolve() for path in images}
    for path in images:
        suffix = path.suffix.lower() if path.suffix.lower() in JPEG_SUFFIXES else ".png"
        name, number = f"{path.stem}{suffix}", 2
        while name in taken:
            name, number = f"{path.stem}-{number}{suffix}", number + 1
        taken.add(name)
        names[path] = name
        if (output / name).resolve() in inputs:
            raise OutputError(f"annotated pictures would overwrite {output / name}; choose another --output folder")
    return names
