"""Labels in any script: a font that has the characters, or the class index and a warning."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtdetr_deploy import Detections, OptionError, fonts

BLACK = np.zeros((120, 200, 3), np.uint8)


@pytest.fixture
def dejavu() -> Path:
    matplotlib: Any = pytest.importorskip("matplotlib", reason="brings a font with Greek and Cyrillic letters")
    return Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    fonts._find_font.cache_clear()
    fonts._installed_fonts.cache_clear()


def _named(name: str) -> Detections:
    return Detections(
        np.array([[20, 40, 150, 100]], np.float32), np.array([0.5], np.float32), np.array([3], np.int64), (name,)
    )


def _only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "font_folders", lambda: iter([folder]))
    fonts._find_font.cache_clear()
    fonts._installed_fonts.cache_clear()


def test_an_installed_font_is_found_that_has_the_characters(dejavu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _only(dejavu.parent, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        greek, cyrillic = (np.asarray(_named(name).draw(BLACK)) for name in ("λεμφο", "лимфо"))
    assert not np.array_equal(greek, cyrillic)  # boxes for missing characters would be alike
    assert fonts._find_font(frozenset("λ")) == dejavu


def test_a_font_may_be_given(dejavu: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _only(tmp_path, monkeypatch)
    given = np.asarray(_named("é").draw(BLACK, font=dejavu))
    with pytest.warns(UserWarning, match="no installed font has all"):
        assert not np.array_equal(given, np.asarray(_named("é").draw(BLACK)))
    with pytest.warns(UserWarning, match=r"DejaVuSans.ttf lacks characters of the class name '红细胞'"):
        _named("红细胞").draw(BLACK, font=dejavu)


def test_where_no_font_has_the_characters_the_index_is_drawn_and_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _only(tmp_path, monkeypatch)
    with pytest.warns(UserWarning, match="characters of the class name '红细胞', which is drawn as 'class 3'"):
        drawn = np.asarray(_named("红细胞").draw(BLACK))
    assert np.array_equal(drawn, np.asarray(_named("class 3").draw(BLACK)))


def test_a_font_of_placeholders_counts_as_none(dejavu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib's font of last resort has one picture for every character of a script."""
    if not (dejavu.parent / "LastResortHE-Regular.ttf").exists():
        pytest.skip("this matplotlib has no font of last resort")
    _only(dejavu.parent, monkeypatch)
    with pytest.warns(UserWarning, match="characters of the class name '红细胞', which is drawn as 'class 3'"):
        _named("红细胞").draw(BLACK)


def test_a_file_that_is_not_a_font_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.ttf").write_bytes(b"nothing")
    for name in ("x.ttf", "none.ttf"):
        with pytest.raises(OptionError, match=rf"can't read the font .*{name}: .*; give a .ttf, .otf or .ttc file"):
            _named("a").draw(BLACK, font=tmp_path / name)


def test_a_name_of_a_megabyte_or_with_line_breaks_is_drawn_short() -> None:
    _named("x" * 1_000_000).draw(BLACK)
    one = np.asarray(_named("a\nb").draw(BLACK))
    assert np.array_equal(one, np.asarray(_named("a\\nb").draw(BLACK)))
