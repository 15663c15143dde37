"""Commands of version 0.1, where what is done was named by an option, as they are typed now."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Mapping, Sequence

from rtdetr_deploy import OptionError

LATENCY = "latency"
"""What a command line without a verb does: `rtdetr-bench --engine model.engine`."""
OLD_VERBS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "--study": ("ablation", {"--engine": "--weights", "--accuracy": "--annotations", "--study": ""}),
    "--accuracy": ("accuracy", {"--accuracy": "--annotations"}),
    "--nms-study": ("nms", {"--nms-study": "--engine", "--engine": "--against"}),
    "--decoder-study": ("decoder", {"--decoder-study": "--weights"}),
    "--encoder-study": ("encoder", {"--encoder-study": "--variant"}),
    "--insert-nms": ("insert-nms", {"--insert-nms": "--engine", "--nms-kind": "--kind"}),
    "--combine": ("report", {"--combine": "", "--report": "--output"}),
}
"""The verb that an option of 0.1 stands for, and how the options beside it are called there ("": left out)."""
BESIDE_LATENCY = ("--decoder-study", "--encoder-study")
"""Beside these, `--engine` was a model that was timed in the same run."""


def with_verb(words: Sequence[str]) -> list[str]:
    """Return a command line that begins with an option as one that begins with a verb.

    Spellings of 0.1 are translated, with a warning that shows the new one. Raises `OptionError` where 0.1 did several
    things in one run.
    """
    typed = [word.partition("=")[0] for word in words]
    found = [old for old in OLD_VERBS if old in typed]
    if found[:2] == ["--study", "--accuracy"]:
        del found[1]
    if not found:
        return [LATENCY, *words]
    verbs = [OLD_VERBS[old][0] for old in found]
    if "--engine" in typed and set(found) <= set(BESIDE_LATENCY):
        found, verbs = ["--engine", *found], [LATENCY, *verbs]
    if len(found) > 1:
        raise OptionError(f"{' and '.join(found)} are verbs now, one per run: rtdetr-bench {', then '.join(verbs)}")
    verb, names = OLD_VERBS[found[0]]
    new = [verb, *_renamed(words, names)]
    warnings.warn(f"{found[0]} is a verb now: rtdetr-bench {shlex.join(new)}", FutureWarning, stacklevel=2)
    return new


def _renamed(words: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Return the words with options renamed. An option without a new name leaves its values behind."""
    result = []
    for word, following in zip(words, (*words[1:], "--"), strict=True):
        old, assigned, value = word.partition("=")
        new = names.get(old, old)
        if old == "--encoder-study" and not assigned and following.startswith("--"):
            continue  # its value could be left out
        if new:
            result.append(f"{new}{assigned}{value}")
        elif assigned:
            result.append(value)
    return result
