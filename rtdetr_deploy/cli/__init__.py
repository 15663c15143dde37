"""The command line of `rtdetr-detect`, and what all command lines share."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run `rtdetr-detect`; where installations of version 0.1 look for it."""
    from rtdetr_deploy.cli import detect

    return detect.main(argv)
