"""Everything that can be wrong with a user's input, as one family of exceptions.

Each message says what is wrong, what was expected, and what to do next, in one line.
"""


class RtdetrError(Exception):
    """Base of every error that this project raises for a user's input."""


class OptionError(RtdetrError, ValueError):
    """An option or argument is outside its allowed values."""


class CheckpointError(RtdetrError):
    """A file is not a checkpoint of an RT-DETR model."""


class ArtifactError(RtdetrError):
    """A file is not a model that can be run here."""


class DeviceError(RtdetrError):
    """A GPU can't be used: none there, out of memory, or CUDA reports a failure."""


class ImageError(RtdetrError):
    """An image can't be read or has no usable content."""


class OutputError(RtdetrError):
    """A result can't be written."""


class ExportError(RtdetrError):
    """A model can't be exported, or the exported file disagrees with it."""


class MissingPackageError(RtdetrError, ImportError):
    """An optional package is needed for what was asked."""
