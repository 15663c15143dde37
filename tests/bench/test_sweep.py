"""`rtdetr-bench sweep` with a small model, from the command to its files."""

from __future__ import annotations

import csv
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("faster_coco_eval")

from rtdetr_bench.cli import main
from rtdetr_bench.machine import describe_machine, instruction_sets, machine_text
from rtdetr_bench.options import EvaluationSet
from rtdetr_bench.sweep import files, speed
from rtdetr_bench.sweep.accuracy import REFERENCE, Evaluation, choose_images
from rtdetr_bench.sweep.options import SweepOptions
from rtdetr_bench.sweep.state import NAME
from rtdetr_deploy import OptionError
from rtdetr_deploy.errors import ExportError
from rtdetr_deploy.evaluate.coco import read_annotations
from rtdetr_deploy.runtimes import processor
from rtdetr_export import export


@pytest.fixture
def cells(squares: tuple[Path, Path], tmp_path: Path) -> Path:
    """The squares' json with the small model's classes."""
    content = json.loads(squares[0].read_text())
    content["categories"] = [{"id": 7, "name": "red"}, {"id": 3, "name": "white"}, {"id": 9, "name": "platelet"}]
    path = tmp_path / "cells.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def command(
    small_checkpoint: Path, squares: tuple[Path, Path], cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    monkeypatch.setattr("rtdetr_bench.sweep.estimate.DEFAULT_INPUT_SIZE", (128, 160))  # the whole model's, told by none
    return [
        "sweep", "--weights", str(small_checkpoint), "--annotations", str(cells), "--images", str(squares[1]),
        "--output", str(tmp_path / "out"), "--layers", "2,1", "--queries", "50", "--size", "96x128",
        "--runtime", "onnxruntime", "--rounds", "1", "--time-all", "--threads", "1",
    ]  # fmt: skip


def test_a_sweep_recommends_and_a_second_call_has_nothing_left_to_do(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> Any:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(speed, "time_fully", stop)
        assert main(command) == 130
    error = capsys.readouterr().err
    assert "the same command goes on from there" in error
    assert not (out / "sweep.json").exists()
    assert (out / NAME).is_file()

    with monkeypatch.context() as patch:  # exports and evaluations are not repeated
        patch.setattr(files, "export", stop)
        patch.setattr("rtdetr_bench.sweep.accuracy.average_precision", stop)
        assert main(command) == 0
    streams = capsys.readouterr()
    assert "2 candidates: 2 by onnxruntime" in streams.err
    assert "is the fastest within 0.005 AP of the best" in streams.out
    assert "rtdetr-export --weights" in streams.out
    assert 'runtime="onnxruntime", threads=1)' in streams.out
    content = json.loads((out / "sweep.json").read_text())
    assert content["kind"] == "sweep"
    assert content["images"] == 5
    assert content["machine"]["instructions"] == list(instruction_sets())
    assert content["limits"] == {"budget_ms": None, "min_ap": None, "within": 0.005}
    assert [row["name"] for row in content["rows"]] == [
        "l2-q50-96x128-fp32@onnxruntime", "l1-q50-96x128-fp32@onnxruntime",
    ]  # fmt: skip
    for row in content["rows"]:
        assert row["failed"] is None
        assert 0 < row["single_stream_p90_ms"] < row["multi_stream_p99_ms"]
        assert row["offline_images_per_second"] > 0
        assert len(row["single_stream_ms"]) == 13
        assert row["single_stream_rounds"] == [0] * 13
        assert row["brief_median_ms"] > 0
        assert row["note"] is None
        assert (out / row["file"]).stat().st_size / 1e6 == pytest.approx(row["file_mb"], abs=0.01)
        assert str(tmp_path) not in json.dumps(row)
    assert content["recommended"] in [row["name"] for row in content["rows"] if row["front"]]
    assert len({row["session"] for row in content["rows"]}) == 1
    assert len(list(csv.reader((out / "sweep.csv").open()))) == 3


def test_a_failing_export_is_a_row_and_is_tried_again_when_asked(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(options: Any, progress: Any = None) -> Any:
        if options.layers == 1:
            raise ExportError("the exported file disagrees with the torch model")
        return export(options, progress)

    with monkeypatch.context() as patch:
        patch.setattr(files, "export", refuse)
        assert main(command) == 0
    assert "failed: the exported file disagrees" in capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"]
    assert [row["failed"] for row in rows] == [None, "the exported file disagrees with the torch model"]
    assert main(command) == 0
    assert "failed: the exported" in capsys.readouterr().out
    assert main([*command, "--retry"]) == 0
    assert "failed" not in capsys.readouterr().out


def test_what_was_timed_apart_is_timed_again_together(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = frozenset({"l2-q50-96x128-fp32@onnxruntime", "l1-q50-96x128-fp32@onnxruntime"})
    monkeypatch.setattr("rtdetr_bench.sweep.study.fronts", lambda _: (everything, everything))
    with monkeypatch.context() as patch:
        patch.setattr(speed, "make_groups", lambda contenders: [[one] for one in contenders])
        assert main(command) == 0
    assert "timed again" not in capsys.readouterr().err
    apart = {row["session"] for row in json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"]}
    assert len(apart) == 2
    assert main(command) == 0
    assert "2 candidates on the fronts, not timed together: timed again" in capsys.readouterr().err
    together = {row["session"] for row in json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"]}
    assert len(together) == 1
    assert not together & apart


def test_brief_times_beat_nothing_that_was_timed_at_length(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(command) == 0
    monkeypatch.setattr("rtdetr_bench.sweep.study.beats_clearly", lambda name, points: "another")
    assert main([word for word in command if word != "--time-all"]) == 0
    assert "clearly beaten" not in capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"]
    assert all(row["single_stream_p90_ms"] for row in rows)


def test_what_looks_beaten_by_a_brief_time_is_timed_when_the_full_one_is_slower(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    milliseconds = {"l2": (100.0, 415.0), "l1": (176.0, 176.0)}  # brief, full

    def timed(of: int, together: list[list[str]]) -> Any:
        def work(group: Any, *_: Any) -> dict[str, Any]:
            together.append([one.candidate.name for one in group])
            return {
                one.candidate.name: {speed.SINGLE: [milliseconds[one.candidate.name[:2]][of]] * 65,
                                     speed.ROUNDS: [number // 13 for number in range(65)],
                                     speed.OFFLINE: [[8, 1.0]], speed.SESSION: str(len(together))}
                for one in group
            }  # fmt: skip

        return work

    groups: list[list[str]] = []
    monkeypatch.setattr(speed, "time_briefly", timed(0, []))
    monkeypatch.setattr(speed, "time_fully", timed(1, groups))
    monkeypatch.setattr(
        "rtdetr_bench.sweep.accuracy.Evaluation.evaluate",
        lambda *_: {"AP": 0.6, "AP50": 0.8, "match_rate": 1.0},
    )
    assert main([word for word in command if word != "--time-all"]) == 0
    content = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [name for group in groups for name in group][:2] == [row["name"] for row in content["rows"]]
    assert content["recommended"] == "l1-q50-96x128-fp32@onnxruntime"


def test_without_the_whole_model_candidates_have_an_ap_and_no_match_rate(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(options: Any, progress: Any = None) -> Any:
        if options.queries == 300:
            raise ExportError("no memory is left")
        return export(options, progress)

    with monkeypatch.context() as patch:
        patch.setattr(files, "export", refuse)
        assert main(command) == 0
    streams = capsys.readouterr()
    assert streams.err.count("nothing is compared with the whole model, l3-q300-128x160-fp32@onnxruntime: no mem") == 1
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"]
    assert [(row["failed"], row["match_rate"]) for row in rows] == [(None, None)] * 2
    assert all(row["AP"] is not None for row in rows)
    assert main([*command, "--retry"]) == 0
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"]
    assert all(row["match_rate"] is not None for row in rows)


def test_another_models_detections_are_not_taken_for_the_references(
    command: list[str], cells: Path, squares: tuple[Path, Path], tmp_path: Path
) -> None:
    assert main([*command, "--only", "l2*"]) == 0
    truth = read_annotations(cells, squares[1], ("red", "white", "platelet"))
    options = SweepOptions(Path("r.pth"), EvaluationSet(cells, squares[1]), tmp_path / "out")
    with np.load(tmp_path / "out" / REFERENCE) as content:
        made_of = str(content["made_of"])
    assert Evaluation(truth, options, made_of).reopen()
    assert not Evaluation(truth, options, made_of + " ").reopen()


def test_another_part_begins_again_when_its_input_has_changed(
    command: list[str], cells: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--only", "l2*"]) == 0
    capsys.readouterr()
    cells.write_text(cells.read_text() + " ")
    assert main([*command, "--only", "l2*"]) == 0
    error = capsys.readouterr().err
    assert "accuracy of an earlier call: annotations changed since; begun again" in error
    assert "speed of an earlier call: annotations changed since; begun again" in error
    assert "] export" not in error
    assert "] evaluate l2" in error


def test_a_dry_run_tells_the_plan_and_writes_nothing(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--dry-run"]) == 0
    assert "3 files to export, 2 candidates" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_far_above_the_budget_nothing_is_evaluated(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--budget", "0.001ms"]) == 0
    text = capsys.readouterr().out
    assert "not evaluated: about" in text
    assert "Nothing" in text
    assert main(command) == 0  # evaluates
    capsys.readouterr()
    assert main([*command, "--budget", "0.001ms"]) == 0
    text = capsys.readouterr().out
    assert "not evaluated" not in text
    assert "Nothing answers within 0.001 ms" in text


def test_a_reference_above_the_budget_is_evaluated_and_says_so(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    start, rest = command[: command.index("--layers")], command[command.index("--runtime") :]
    whole = [*start, "--layers", "3", "--queries", "300", "--size", "128x160", *rest]
    assert main([*whole, "--budget", "0.001ms"]) == 0
    text = capsys.readouterr().out
    assert "not timed at length: about" in text
    assert "not evaluated" not in text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budget", "soon"], "--budget is 'soon', expected a time like 30ms"),
        (["--budget", "30ms", "--min-ap", "0.5"], "--budget and --min-ap both say what decides"),
        (["--layers", "2,x"], "'x' is not a whole number"),
        (["--precision", "int8"], "--precision int8 needs --calibration"),
        (["--weights", "{output}"], "does not exist"),
        (["--queries", "900"], "--queries is 900, but cells.pth has 300 queries"),
    ],
)
def test_wrong_input_gives_one_line(
    more: list[str], message: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = None
    with suppress(SystemExit):  # argparse's, for what it can't read
        status = main([*command, *(word.format(output=tmp_path / "none.pth") for word in more)])
    assert status in (None, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_model_file_is_not_what_a_sweep_exports(command: list[str], small_onnx: Path) -> None:
    from rtdetr_bench.sweep.estimate import read_subject

    data = EvaluationSet(Path(command[4]), Path(command[6]))
    with pytest.raises(OptionError, match="`weights` is small.onnx, a model file; expected a checkpoint"):
        read_subject(SweepOptions(small_onnx, data, Path("out")))


def test_images_are_chosen_evenly_with_their_objects(cells: Path, squares: tuple[Path, Path]) -> None:
    truth = read_annotations(cells, squares[1], ("red", "white", "platelet"))
    few = choose_images(truth, 3)
    assert [number for number, _ in few.images] == [1, 3, 5]
    assert {one["image_id"] for one in few.content["annotations"]} <= {1, 3, 5}
    assert choose_images(truth, 9) is truth


def test_the_machine_tells_its_instruction_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(
        "model name\t: Quick 9\nflags\t\t: fpu avx2 fma avx512f avx512bw avx512dq avx512vl avx512_vnni avx512_bf16\n"
    )
    monkeypatch.setattr("rtdetr_bench.machine.CPU_INFO", info)
    monkeypatch.setattr(processor, "CPUINFO", info)
    monkeypatch.setattr(processor, "instruction_sets", processor.instruction_sets.__wrapped__)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    machine = describe_machine()
    assert machine["processor"] == "Quick 9"
    assert machine["instructions"] == ["avx2", "avx512", "vnni", "bf16"]
    assert "avx2 avx512 vnni bf16, ONEDNN_MAX_CPU_ISA AVX2" in machine_text(machine)
    info.unlink()
    assert instruction_sets() == ()
