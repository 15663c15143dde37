"""The cascade K:N as text, and its rule."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from rtdetr_deploy import ArtifactError, OptionError
from rtdetr_deploy.artifacts.cascade import check_cascade, parse_cascade, show_cascade
from rtdetr_deploy.artifacts.metadata import METADATA_KEY, read_metadata
from test_metadata import INFO


def test_a_cascade_is_layer_and_queries() -> None:
    assert parse_cascade("2:100") == (2, 100)
    assert show_cascade((2, 100)) == "2:100"
    assert check_cascade([2, 100], layers=3, queries=100) == (2, 100)


@pytest.mark.parametrize("text", ["2", "2:", ":100", "2:100:3", "2:100,4:50", "-2:100", "2:1e2", "a:b", "", "²:100"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="is not understood; write a single K:N, e.g. 2:100"):
        parse_cascade(text)


@pytest.mark.parametrize(
    ("cascade", "message"),
    [
        ("2:100", r"`cascade` is '2:100', expected \(K, N\)"),
        ((2,), r"`cascade` is \(2,\), expected \(K, N\)"),
        ((2.0, 100), r"`cascade` is \(2.0, 100\), expected"),
        ((True, 100), r"`cascade` is \(True, 100\), expected"),
        ((0, 100), "after decoder layer 0, which no other follows: of 3 layers choose 1 to 2"),
        ((3, 100), "after decoder layer 3, which no other follows: of 3 layers choose 1 to 2"),
        ((1, 0), "`cascade` lets 0 of 300 queries go on: choose 1 to 300"),
        ((1, 301), "`cascade` lets 301 of 300 queries go on: choose 1 to 300"),
    ],
)
def test_layers_and_queries_outside_the_model_are_refused(cascade: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        check_cascade(cascade, layers=3, queries=300)


def test_what_is_not_known_yet_is_not_checked() -> None:
    assert check_cascade((5, 1000)) == (5, 1000)
    with pytest.raises(OptionError, match="`cascade` lets 0 queries go on: choose 1 or more"):
        check_cascade((1, 0))
    with pytest.raises(OptionError, match="after decoder layer 0, which no other follows$"):
        check_cascade((0, 1))
    with pytest.raises(OptionError, match="between decoder layers, and only 1 runs; leave it out"):
        check_cascade((1, 100), layers=1)


def test_metadata_hold_the_cascade() -> None:
    info = replace(INFO, cascade=(2, 100))
    assert read_metadata({METADATA_KEY: info.to_json()}, "m.onnx") == info
    assert (INFO.output_queries, info.output_queries) == (300, 100)
    stored = json.loads(INFO.to_json())
    del stored["cascade"]  # as earlier versions wrote them
    assert read_metadata({METADATA_KEY: json.dumps(stored)}, "m.onnx") == INFO


@pytest.mark.parametrize(
    ("cascade", "message"),
    [
        ([3, 100], "cascade leaves queries out after decoder layer 3, .*, in a model's metadata"),
        ([1, 400], "cascade lets 400 of 300 queries go on"),
        ([1, 2, 3], r"cascade is \(1, 2, 3\), expected"),
        ("1:100", "cascade is '1:100', expected"),
    ],
)
def test_damaged_metadata_are_told(cascade: Any, message: str) -> None:
    stored = {**json.loads(INFO.to_json()), "cascade": cascade}
    with pytest.raises(ArtifactError, match=message):
        read_metadata({METADATA_KEY: json.dumps(stored)}, "m.onnx")
