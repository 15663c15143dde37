"""The file beside an engine: what older versions wrote is read, and an accepted engine says so when it is opened."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

import fake_tensorrt
from engine_world import make_engine
from rtdetr_deploy import open_runtime
from rtdetr_deploy.artifacts.hardware import read_compatibility
from rtdetr_deploy.runtimes.trt.sidecar import read_engine_info, sidecar_path

pytest_plugins = ("engine_world",)


@pytest.mark.parametrize(("stored", "level"), [(True, "ampere+"), (False, "none")])
def test_what_version_0_1_wrote_is_read(stored: bool, level: str, engine: Path) -> None:
    sidecar = sidecar_path(engine)
    content = json.loads(sidecar.read_text())
    for name in ("accepted", "report"):
        del content[name]
    sidecar.write_text(json.dumps({**content, "hardware_compatible": stored}))
    found = read_engine_info(engine, engine.read_bytes())
    assert found is not None
    assert (found.hardware_compatible, found.accepted, found.report) == (level, False, "")


def test_a_level_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="hardware_compatible is 'turing'"):
        read_compatibility("turing")
    assert read_compatibility("same-compute-capability") == "same-compute-capability"


def test_an_accepted_engine_says_so_when_it_is_opened(
    world: fake_tensorrt.World, dynamic_onnx: Path, tmp_path: Path
) -> None:
    accepted = make_engine(dynamic_onnx, tmp_path, accepted=True, report="TensorRT 10:\n  rows differ")
    with pytest.warns(UserWarning, match="failed its verification and was accepted .*: TensorRT 10: rows differ"):
        open_runtime(accepted).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_runtime(make_engine(dynamic_onnx, tmp_path)).close()
