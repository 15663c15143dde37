"""What is stored with a file: written, read back, and read from older and newer versions."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fake_runtime import SIDE, FakeRuntime
from rtdetr_deploy import ArtifactError, ArtifactInfo, Predictor
from rtdetr_deploy.artifacts.decoding import ScoreDecoding
from rtdetr_deploy.artifacts.metadata import METADATA_KEY, read_metadata
from rtdetr_deploy.images.preprocess_spec import PreprocessSpec

INFO = ArtifactInfo(
    class_names=("a", "b", "c"), height=SIDE, width=SIDE, batch=None, variant="r18", layers=3, queries=300,
    max_detections=300, precision="fp32", sampler="gather", outputs="detections", raw_input=False, opset=17,
    source="m.pth", source_digest="", verified=True, version="0.2.0",
)  # fmt: skip


def _read(stored: Any) -> ArtifactInfo:
    info = read_metadata({METADATA_KEY: json.dumps(stored)}, "m.onnx")
    assert info is not None
    return info


def test_metadata_is_read_back_as_it_was_written() -> None:
    spec = PreprocessSpec(
        (SIDE, SIDE), color="bgr", scale=1.0, mean=(1.5, 2.0, 3.0), std=(0.5, 1.0, 2.0), filter="bicubic",
        letterbox=True, pad=7,
    )  # fmt: skip
    for info in (INFO, replace(INFO, family="detr", preprocess=spec, decoding=ScoreDecoding("softmax", 91))):
        assert _read(json.loads(info.to_json())) == info


def test_files_of_version_0_1_want_what_rtdetr_wants() -> None:
    stored = json.loads(INFO.to_json())
    for name in ("family", "preprocess", "decoding"):
        del stored[name]
    assert _read(stored) == INFO
    assert INFO.preprocess == PreprocessSpec.rtdetr(INFO.size)
    raw = _read({**stored, "raw_input": True}).preprocess
    assert (raw.layout, raw.dtype, raw.is_plain) == ("nhwc", "uint8", True)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("preprocess", {"color": "lab"}),
        ("preprocess", {"gamma": 2.2}),
        ("preprocess", {"layout": "nhcw"}),
        ("decoding", {"kind": "soft-nms"}),
        ("decoding", {"temperature": 0.5}),
    ],
)
def test_what_a_newer_version_may_have_written_asks_for_an_update(field: str, change: dict[str, Any]) -> None:
    stored = json.loads(INFO.to_json())
    stored[field].update(change)
    with pytest.raises(ArtifactError, match=f"{field} of m.onnx is not understood .*; update rtdetr-deploy"):
        _read(stored)


def test_a_part_that_is_not_an_object_is_named() -> None:
    with pytest.raises(ArtifactError, match="decoding of m.onnx is not understood .*'softmax' is not an object"):
        _read({**json.loads(INFO.to_json()), "decoding": "softmax"})


def test_the_predictor_prepares_and_places_as_the_file_says() -> None:
    spec = PreprocessSpec((SIDE, SIDE), letterbox=True, pad=0)
    image = np.full((4, 8, 3), 255, np.uint8)  # lies in the rows 2 to 6 of the input
    with Predictor(FakeRuntime(info=replace(INFO, preprocess=spec)), 0.0) as predictor:
        found = predictor.detect(image)
    assert found.scores.tolist() == [0.5]
    assert found.boxes.tolist() == [[2.0, 0.0, 6.0, 4.0]]
    assert found.names == ("b",)
