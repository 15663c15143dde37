"""A detector that nobody here trained, on a picture that nobody here took: what its README lists must be found."""

from __future__ import annotations

import re

import numpy as np

from conftest import shared_folder
from rtdetr_deploy import Predictor, ThirdPartyInfo

ROW = re.compile(r"^\| \d+ (?P<name>[a-z ]+) \| (?P<score>[\d.]+) \| (?P<box>[\d. ]+) \|$", re.MULTILINE)


def test_a_third_party_coco_model_finds_what_it_should_by_name() -> None:
    folder = shared_folder("oracle")
    expected = [
        (row["name"], float(row["score"]), [float(side) for side in row["box"].split()])
        for row in ROW.finditer((folder / "README.md").read_text())
    ]
    assert len(expected) == 5
    with Predictor(folder / "deimv2_hgnetv2_atto_coco.onnx", 0.4, resizer="pillow") as predictor:
        found = list(predictor.detect(folder / "coco_val2017_000000000139.jpg"))
        assert isinstance(predictor.info, ThirdPartyInfo)
        assert predictor.info.names_source == "coco"
    for name, score, box in expected:
        matches = [
            detection
            for detection in found
            if detection.name == name
            and abs(detection.score - score) < 0.01
            and np.abs(np.array(detection.box) - box).max() < 1.0
        ]
        assert len(matches) == 1, (name, score, box, found)
    assert len(found) == len(expected)
