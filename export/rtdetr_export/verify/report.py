"""What every verification ends in: a report that passed or says what is wrong."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from rtdetr_deploy.errors import ExportError


@dataclass(frozen=True)
class Report(ABC):
    """Comparison of a written file with what it came from; `runtime` ran the file. `str` shows the figures."""

    runtime: str

    verdict: ClassVar[str]
    """What a failed report says of the file, before its problems."""

    @abstractmethod
    def problems(self) -> list[str]:
        """Return what is wrong with the file, in words; empty when it may be handed over."""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems()

    def require(self, name: str) -> None:
        """Raise `ExportError` about the file `name` unless the report passed."""
        problems = self.problems()
        if problems:
            raise ExportError(f"{name} {self.verdict} and was not written: {'; '.join(problems)}")
