"""What is read from the bytes of an ONNX file, and the class names that follow from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from rtdetr_deploy import COCO_NAMES, ArtifactError, Predictor, ThirdPartyInfo  # noqa: E402
from rtdetr_deploy.runtimes.onnx_file import read_graph  # noqa: E402

PAIRS = np.array([[85, 3]], np.int64)


def _write(path: Path, form: str, classes: int, *, inline: bool = False) -> Path:
    """Write a file whose labels are PAIRS modulo `classes`, computed as exporters do it; boxes and scores are fixed."""
    count = np.array(classes, np.int64)
    constants: dict[str, NDArray[Any]] = {
        "pairs": PAIRS,
        "boxes_value": np.full((1, 2, 4), 0.5, np.float32),
        "scores_value": np.array([[0.9, 0.8]], np.float32),
    }
    nodes = [helper.make_node("Identity", [f"{name}_value"], [name]) for name in ("boxes", "scores")]
    if inline:
        nodes.append(helper.make_node("Constant", [], ["count"], value=numpy_helper.from_array(count)))
    else:
        constants["count"] = count
    if form == "mod":
        nodes += [
            helper.make_node("Mod", ["pairs", "count"], ["index"]),
            helper.make_node("Cast", ["index"], ["labels"], to=TensorProto.INT64),
        ]
    elif form == "div":
        nodes += [
            helper.make_node("Div", ["pairs", "count"], ["rows"]),
            helper.make_node("Mul", ["rows", "count"], ["start"]),
            helper.make_node("Sub", ["pairs", "start"], ["labels"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["pairs"], ["labels"]))
    kinds = {"labels": TensorProto.INT64, "boxes": TensorProto.FLOAT, "scores": TensorProto.FLOAT}
    shapes = {"labels": [1, 2], "boxes": [1, 2, 4], "scores": [1, 2]}
    graph = helper.make_graph(
        nodes,
        "labels",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info(name, kinds[name], shapes[name]) for name in kinds],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("form", ["mod", "div"])
def test_a_third_party_file_of_80_classes_has_the_names_of_coco_and_says_so(
    form: str, inline: bool, tmp_path: Path
) -> None:
    with Predictor(_write(tmp_path / "x.onnx", form, 80, inline=inline)) as predictor:
        found = predictor.detect(np.zeros((50, 50, 3), np.uint8))
        assert found.names == (COCO_NAMES[5], COCO_NAMES[3])
        assert isinstance(predictor.info, ThirdPartyInfo)
        assert (predictor.info.names_source, predictor.info.class_names) == ("coco", COCO_NAMES)
        assert (predictor.info.height, predictor.info.width, predictor.info.batch) == (32, 32, 1)


@pytest.mark.parametrize(
    ("form", "source", "first"), [("mod", "numbered", "class 1"), ("plain", "unknown", "class 85")]
)
def test_any_other_file_is_not_given_the_names_of_coco(form: str, source: str, first: str, tmp_path: Path) -> None:
    with Predictor(_write(tmp_path / "x.onnx", form, 7)) as predictor:
        assert predictor.detect(np.zeros((50, 50, 3), np.uint8)).names[0] == first
        assert isinstance(predictor.info, ThirdPartyInfo)
        assert predictor.info.names_source == source


def test_names_that_are_given_replace_those_of_coco(tmp_path: Path) -> None:
    names = [f"thing {index}" for index in range(80)]
    with Predictor(_write(tmp_path / "x.onnx", "mod", 80), class_names=names) as predictor:
        assert predictor.detect(np.zeros((50, 50, 3), np.uint8)).names == ("thing 5", "thing 3")
        assert isinstance(predictor.info, ThirdPartyInfo)
        assert predictor.info.names_source == "given"


def test_our_own_files_tell_their_classes_too(small_onnx: Path) -> None:
    graph = read_graph(small_onnx)
    assert graph.count_classes("labels") == 3
    assert graph.count_classes("boxes") is None
    assert not graph.dequantizes_to_half()


def test_the_reader_agrees_with_the_onnx_package(small_onnx: Path) -> None:
    graph, model = read_graph(small_onnx), onnx.load(str(small_onnx))
    assert graph.types == {value.name: value.data_type for value in model.graph.initializer}
    assert {(node.operator, node.inputs, node.outputs) for node in graph.makers.values()} == {
        (node.op_type, tuple(node.input), tuple(node.output)) for node in model.graph.node
    }
    for name, number in graph.integers.items():
        (value,) = (value for value in model.graph.initializer if value.name == name)
        assert numpy_helper.to_array(value).ravel().tolist() == [number]


@pytest.mark.parametrize("content", [b"\xff" * 40, b"\x3a\x7f\x0a", b"not a model", b"\x3a\x05\x0a\x03\x22\x09a"])
def test_damaged_content_is_an_error_and_never_a_hang(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"damaged\.onnx is not a loadable ONNX model: its content is damaged"):
        read_graph(path)


def test_nodes_without_what_they_need_are_no_trouble(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["x"], ["y"]),
        helper.make_node("Sub", ["y"], ["labels"]),
        helper.make_node("Cast", ["b"], ["a"], to=1),
        helper.make_node("Cast", ["a"], ["b"], to=1),
    ]
    path = tmp_path / "odd.onnx"
    path.write_bytes(helper.make_model(helper.make_graph(nodes, "odd", [], [])).SerializeToString())
    graph = read_graph(path)
    assert not graph.dequantizes_to_half()
    assert graph.count_classes("labels") is None
    assert graph.count_classes("a") is None
