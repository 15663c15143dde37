"""Selection of detections from raw outputs, and their scaling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rtdetr_deploy.artifacts.decoding import ScoreDecoding
from rtdetr_deploy.errors import ArtifactError, OptionError
from rtdetr_deploy.postprocess import check_finite, class_scores, decode_outputs, decode_raw, keep_best

BOXES = np.array([[0.5, 0.5, 0.2, 0.4], [0.9, 0.1, 0.4, 0.4]], np.float32)


def test_query_class_pairs_are_selected_not_the_best_class_of_a_query() -> None:
    logits = np.array([[3.0, 2.0, -5.0], [1.0, -4.0, -6.0]], np.float32)
    labels, boxes, scores = decode_raw(logits, BOXES, 3)
    assert labels.tolist() == [0, 1, 0]
    assert scores == pytest.approx(1 / (1 + np.exp([-3.0, -2.0, -1.0])), abs=1e-6)
    assert boxes[0] == pytest.approx([0.4, 0.3, 0.6, 0.7], abs=1e-6)
    assert boxes[1] == pytest.approx(boxes[0])
    assert boxes[2] == pytest.approx([0.7, -0.1, 1.1, 0.3], abs=1e-6)


def test_fewer_pairs_than_asked_for_are_all_returned_sorted() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    labels, _, scores = decode_raw(logits, BOXES, 300)
    assert len(labels) == 8
    assert (np.diff(scores) <= 0).all()


def test_extreme_logits_give_scores_without_warnings() -> None:
    logits = np.array([[-200.0, 200.0]], np.float32)
    with np.errstate(all="raise"):
        _, _, scores = decode_raw(logits.repeat(2, axis=0), BOXES, 4)
    assert scores.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_softmax_leaves_the_no_object_class_out() -> None:
    logits = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32) * 3
    boxes = np.random.default_rng(2).uniform(0.1, 0.4, (6, 4)).astype(np.float32)
    shares = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True)
    for no_object, kept in ((None, [0, 1, 2, 3]), (4, [0, 1, 2, 3]), (0, [1, 2, 3, 4]), (2, [0, 1, 3, 4])):
        rows = [(share[kept].max(), int(share[kept].argmax()), query) for query, share in enumerate(shares)]
        expected = sorted(rows, reverse=True)[:4]
        labels, found, scores = decode_raw(logits, boxes, 4, ScoreDecoding("softmax", no_object))
        assert labels.tolist() == [label for _, label, _ in expected]
        assert scores == pytest.approx([score for score, _, _ in expected], abs=1e-6)
        for box, (_, _, query) in zip(found, expected, strict=True):
            assert box[:2] == pytest.approx(boxes[query, :2] - boxes[query, 2:] / 2, abs=1e-6)


def test_one_class_takes_each_query_once() -> None:
    logits = np.array([[3.0, 2.0, -5.0], [1.0, -4.0, 1.5], [-1.0, -2.0, -3.0]], np.float32)
    boxes = np.concatenate([BOXES, BOXES[:1]])
    labels, found, scores = decode_raw(logits, boxes, 2, ScoreDecoding("one-class"))
    assert labels.tolist() == [0, 2]
    assert scores == pytest.approx(1 / (1 + np.exp([-3.0, -1.5])), abs=1e-6)
    assert found[1] == pytest.approx([0.7, -0.1, 1.1, 0.3], abs=1e-6)


def test_class_scores_are_those_that_are_decoded() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (5, 4)).astype(np.float32)
    powers = np.exp(logits.astype(np.float64))
    assert np.allclose(class_scores(logits), powers / (1 + powers), atol=1e-6)
    shares = powers / powers.sum(axis=1, keepdims=True)
    assert np.allclose(class_scores(logits, ScoreDecoding("softmax")), shares[:, :3], atol=1e-6)
    assert np.allclose(class_scores(logits, ScoreDecoding("softmax", 0)), shares[:, 1:], atol=1e-6)


@pytest.mark.parametrize("kind", ["sigmoid", "one-class", "softmax"])
def test_huge_logits_of_any_kind_give_finite_scores(kind: str) -> None:
    logits = np.array([[-1e4, 1e4, 0.0], [0.0, 0.0, 200.0]], np.float32)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        _, _, scores = decode_raw(logits, BOXES, 2, ScoreDecoding(kind))  # type: ignore[arg-type]
    assert np.isfinite(scores).all()
    assert scores[0] == 1.0


def test_a_no_object_class_counts_as_none_of_the_classes() -> None:
    assert [ScoreDecoding(kind).count_classes(81) for kind in ("sigmoid", "one-class", "softmax")] == [81, 81, 80]
    with pytest.raises(ArtifactError, match="a model with 5 logits per query has no class 5 for no object"):
        decode_raw(np.zeros((2, 5), np.float32), BOXES, 2, ScoreDecoding("softmax", 5))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "max"}, "`kind` is 'max', expected 'sigmoid' or 'one-class' or 'softmax'"),
        ({"no_object": 3}, "`no_object` is 3, expected an index from 0, and only with softmax"),
        ({"kind": "softmax", "no_object": -1}, "`no_object` is -1, expected an index from 0"),
        ({"kind": "softmax", "no_object": "last"}, "`no_object` is 'last', expected int"),
    ],
)
def test_decodings_that_do_not_exist_are_refused(values: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ScoreDecoding(**values)


def test_the_best_of_the_wanted_come_first() -> None:
    labels, scores = np.array([2, 0, 1, 0]), np.array([0.3, 0.5, 0.9, 0.7], np.float32)
    boxes = np.arange(16, dtype=np.float32).reshape(4, 4)
    found = keep_best(labels, boxes, scores, 0.4, frozenset({0, 2}))
    assert found[0].tolist() == [0, 0]
    assert np.array_equal(found[1], boxes[[3, 1]])
    assert found[2] == pytest.approx([0.7, 0.5])
    assert keep_best(labels, boxes, scores, 0.0, None)[0].tolist() == [1, 0, 0, 2]


def test_outputs_in_half_precision_are_read_as_float32() -> None:
    logits = np.array([[3.0, 2.0]], np.float16)
    _, boxes, scores = decode_outputs(
        {"logits": logits, "boxes": BOXES[:1].astype(np.float16)}, 2, ScoreDecoding(), "m"
    )
    assert boxes.dtype == scores.dtype == np.float32
    assert scores == pytest.approx(1 / (1 + np.exp([-3.0, -2.0])), abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_an_error(bad: float) -> None:
    scores = np.array([0.5, bad], np.float32)
    with pytest.raises(ArtifactError, match="m.onnx returned numbers that are not finite: its precision is broken"):
        check_finite(BOXES, scores, "m.onnx")
