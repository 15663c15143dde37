"""Verbs and their options: each takes those that it uses, and any other is refused; Python's calls get the same."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rtdetr_bench import verbs
from rtdetr_bench.cli import main
from rtdetr_bench.models.nms import NmsOptions
from rtdetr_bench.options import (
    AccuracyOptions,
    EncoderStudyOptions,
    EvaluationSet,
    ImageOptions,
    InsertNmsOptions,
    LatencyOptions,
    ReportOptions,
    RunOptions,
    TimingOptions,
)
from rtdetr_bench.parts import values_of
from rtdetr_bench.results import shown
from rtdetr_bench.verbs import VERBS, build_parser, parse
from rtdetr_deploy import OptionError
from rtdetr_deploy.runtimes import RuntimeOptions

TIMED = "--runs --duration --warmup --pause"
WRITTEN = "--json --report"
OPENED = "--size --resizer --runtime --device --threads --arithmetic --hint --slots --cache"
TAKEN = {
    "latency": f"--engine --against --batch --scenario --images --annotations {TIMED} {OPENED} --spinning "
    f"--blocking-sync --threshold --iou --nms {WRITTEN}",
    "accuracy": f"--engine --annotations --images {OPENED} {WRITTEN}",
    "ablation": f"--weights --annotations --images --cascade {TIMED} --size --device --threads {WRITTEN}",
    "nms": f"--engine --against --images --annotations {OPENED} {WRITTEN}",
    "decoder": f"--weights --images --annotations {TIMED} {OPENED} --threshold {WRITTEN}",
    "encoder": f"--variant --encoders {TIMED} {OPENED} --threshold {WRITTEN}",
    "roofline": f"--engine --against --gpu --batch --top {WRITTEN}",
    "precision": f"--weights --annotations --images --calibration --target --against {WRITTEN}",
    "pipeline": f"--engine --batch --runs --calls --seconds {OPENED} --spinning --blocking-sync {WRITTEN}",
    "profile": f"--engine --runtime --precision --runs --top --threads {WRITTEN}",
    "sweep": "--weights --annotations --images --output --calibration --layers --queries --cascade --size --precision "
    "--runtime --batch --only --within --budget --min-ap --max-images --rounds --time-all --retry --dry-run --device "
    "--threads --report",
    "report": "--output",
    "insert-nms": "--engine --output --kind --threshold --iou --size",
}
"""The options of each verb, as the documentation has them."""
REQUIRED = {
    "latency": "--engine m.onnx",
    "accuracy": "--engine m.onnx --annotations val.json --images val",
    "ablation": "--weights w.pth --annotations val.json --images val",
    "nms": "--engine y.onnx",
    "decoder": "--weights w.pth",
    "encoder": "",
    "precision": "--weights w.pth --annotations val.json --images val",
    "roofline": "--engine m.onnx",
    "pipeline": "--engine m.onnx",
    "profile": "--engine m.onnx",
    "sweep": "--weights w.pth --annotations val.json --images val --output sweep",
    "report": "a.json --output a.html",
    "insert-nms": "--engine y.onnx --output z.onnx",
}
ALL = sorted({option for taken in TAKEN.values() for option in taken.split()})


def _options(line: str) -> Any:
    return parse(line.split()).options


def test_every_verb_takes_exactly_its_options() -> None:
    assert set(TAKEN) == set(VERBS)
    for verb, taken in TAKEN.items():
        actions = build_parser(verb)._actions
        shown = {option for action in actions if action.help != "==SUPPRESS==" for option in action.option_strings}
        assert shown == {*taken.split(), "-h", "--help", "--version"}, verb


def test_the_help_says_what_runs_duration_and_scenarios_are_to_each_other() -> None:
    told = {action.dest: str(action.help) for action in build_parser("latency")._actions}
    assert "not with --duration" in told["runs"]
    assert "not with --runs" in told["duration"]
    assert re.search(r"--runs queries \(offline: one, of --runs batches\), or for --duration", told["scenario"])


@pytest.mark.parametrize("verb", TAKEN)
def test_an_option_of_another_verb_is_refused(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option in set(ALL) - set(TAKEN[verb].split()):
        with pytest.raises(SystemExit) as ended:
            main([verb, *REQUIRED[verb].split(), option, "1"])
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith(f"rtdetr-bench {verb}: unrecognized arguments: {option}")
        assert error.endswith(f"; rtdetr-bench {verb} --help shows all options\n")
        assert error.count("\n") == 1


def test_the_overview_lists_every_verb_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name, verb in VERBS.items():
        assert re.search(rf"^  {name} +{re.escape(verb.help)}$", text, re.MULTILINE)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("rtdetr-bench ")


def test_options_of_one_name_in_two_parts_stay_apart() -> None:
    options = _options(f"sweep {REQUIRED['sweep']} --precision fp32 --runtime openvino")
    assert options.grid.precision == ("fp32",)
    assert options.where == RuntimeOptions()
    assert dict(values_of(options))["precision"] == ("fp32",)


def test_without_a_verb_the_latency_is_measured() -> None:
    line = ["--engine", "model.engine", "--runs", "7"]
    assert (
        parse(line).options
        == parse(["latency", *line]).options
        == LatencyOptions(Path("model.engine"), timing=TimingOptions(runs=7))
    )


def test_options_reach_the_call_as_they_are_typed() -> None:
    line = "latency --engine m.onnx --against a.onnx --against b.onnx --batch 1,8 --images val --annotations val.json "
    line += "--duration 2 --warmup 3 --pause 0.5 --size 480x640 --resizer pillow --runtime onnxruntime "
    line += "--device cuda:0 --threads 2 --threshold 0.25 --iou 0.5 --nms numpy"
    assert parse(line.split()).options == LatencyOptions(
        Path("m.onnx"),
        (Path("a.onnx"), Path("b.onnx")),
        (1, 8),
        ImageOptions(("val",), Path("val.json")),
        TimingOptions(duration=2.0, warmup=3, pause=0.5),
        RunOptions(
            NmsOptions(0.25, 0.5, method="numpy"),
            (480, 640),
            "pillow",
            "onnxruntime",
            RuntimeOptions(device="cuda:0", threads=2),
        ),
    )
    data = EvaluationSet(Path("v.json"), Path("val"))
    accuracy = _options("accuracy --engine m.onnx --annotations v.json --images val --threads 1")
    assert accuracy == AccuracyOptions(Path("m.onnx"), data, RunOptions(where=RuntimeOptions(threads=1)))
    encoder = _options("encoder --variant r18 --encoders A,E --threshold 0.5")
    assert encoder == EncoderStudyOptions("r18", ("A", "E"), run=RunOptions(NmsOptions(0.5)))
    insert = _options("insert-nms --engine y.onnx --output z.onnx --kind tensorrt --iou 0.5 --size 64")
    assert insert == InsertNmsOptions(Path("y.onnx"), Path("z.onnx"), "tensorrt", NmsOptions(iou=0.5), (64, 64))
    report = _options("report a.json b.json --output c.html")
    assert report == ReportOptions((Path("a.json"), Path("b.json")), Path("c.html"))


def test_what_is_typed_reaches_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("m.onnx", "y.onnx", "w.pth", "val.json", "a.json"):
        Path(file).write_bytes(b"x")
    for name, verb in VERBS.items():
        calls: list[Any] = []

        def work(options: Any, calls: list[Any] = calls) -> dict[str, Any]:
            calls.append(options)
            return {}

        monkeypatch.setitem(verbs.VERBS, name, replace(verb, work=work))
        assert main([name, *REQUIRED[name].split()]) == 0
        assert [type(one) for one in calls] == [verb.options]
    assert capsys.readouterr().err == ""


def test_files_that_are_not_there_are_named_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("w.pth", "val.json", "m.onnx"):
        Path(file).write_bytes(b"x")
    rest = "--annotations val.json --images ."
    for line, message in (
        (f"precision --weights none.pth {rest}", "none.pth does not exist"),
        (f"precision --weights w.pth {rest} --calibration none", "none does not exist"),
        (f"precision --weights w.pth {rest} --against none.onnx", "none.onnx does not exist"),
        (f"ablation --weights none.pth {rest}", "none.pth does not exist"),
        ("--engine m.onnx --against none.onnx", "none.onnx does not exist"),
    ):
        assert main(line.split()) == 2
        assert capsys.readouterr() == ("", f"rtdetr-bench: {message}\n")


OLD = {
    "--nms-study y.onnx --engine m.onnx --images val": "nms --engine y.onnx --against m.onnx --images val",
    "--decoder-study w.pth --runs 5": "decoder --weights w.pth --runs 5",
    "--decoder-study=w.pth": "decoder --weights=w.pth",
    "--encoder-study": "encoder",
    "--encoder-study=r18 --runs=3": "encoder --variant=r18 --runs=3",
    "--combine=a.json --report=c.html": "report a.json --output=c.html",
    "--encoder-study --encoders A,E": "encoder --encoders A,E",
    "--encoders A,E --encoder-study r18": "encoder --encoders A,E --variant r18",
    "--engine m.onnx --accuracy v.json --images val": "accuracy --engine m.onnx --annotations v.json --images val",
    "--engine w.pth --accuracy v.json --images d --study": "ablation --weights w.pth --annotations v.json --images d",
    "--insert-nms y.onnx --output z.onnx --nms-kind onnx": "insert-nms --engine y.onnx --output z.onnx --kind onnx",
    "--combine a.json b.json --report c.html": "report a.json b.json --output c.html",
    "--report c.html --combine a.json b.json": "report --output c.html a.json b.json",
}


@pytest.mark.parametrize("old", OLD)
def test_command_lines_of_0_1_work_with_one_line_of_warning(old: str) -> None:
    with pytest.warns(FutureWarning) as warned:
        found = parse(old.split())
    assert [str(one.message) for one in warned] == [f"{old_verb(old)} is a verb now: rtdetr-bench {OLD[old]}"]
    expected = parse(OLD[old].split())
    assert (found.verb, found.options, found.command) == (expected.verb, expected.options, expected.command)


def old_verb(line: str) -> str:
    return "--study" if "--study" in line else next(
        word.partition("=")[0] for word in line.split()
        if re.match("--(nms-study|decoder-study|encoder-study|accuracy|insert-nms|combine)", word)
    )  # fmt: skip


def test_the_old_name_of_the_threshold_works_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="--confidence is called --threshold now"):
        request = parse(["--engine", "m.onnx", "--confidence", "0.25"])
    assert request.options.run.nms.threshold == 0.25


@pytest.mark.parametrize(
    ("old", "message"),
    [
        (
            "--decoder-study w.pth --encoder-study",
            "--decoder-study and --encoder-study are verbs now, one per run: rtdetr-bench decoder, then encoder",
        ),
        (
            "--engine m.onnx --decoder-study w.pth",
            "--engine and --decoder-study are verbs now, one per run: rtdetr-bench latency, then decoder",
        ),
        (
            "--encoder-study r18 --engine=m.onnx",
            "--engine and --encoder-study are verbs now, one per run: rtdetr-bench latency, then encoder",
        ),
    ],
)
def test_what_0_1_did_in_one_run_is_two_runs_now(old: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(old.split()) == 2
    assert message in capsys.readouterr().err


def test_the_command_that_is_kept_names_files_without_their_folders() -> None:
    line = ["--engine", "/home/me/m.onnx", "--images", "/data/val/*.jpg", "--images", "..", "--against=/x/y.onnx"]
    request = parse([*line, "--runs", "5", "--json", str(Path.home() / "a.json")])
    assert request.command == (
        "rtdetr-bench", "--engine", "m.onnx", "--images", "*.jpg", "--images", "..", "--against=y.onnx",
        "--runs", "5", "--json", "a.json",
    )  # fmt: skip
    values = {name: shown(value) for name, value in values_of(request.options)}
    assert (values["engine"], values["against"], values["runs"]) == ("m.onnx", ["y.onnx"], 5)
    assert "/" not in str(values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageOptions(annotations=Path("v.json")), "`annotations` needs `images` with the folder"),
        (lambda: ImageOptions(("a", "b"), Path("v.json")), "`annotations` needs `images` with the folder"),
        (lambda: EncoderStudyOptions(encoders=("A", "F")), "unknown encoder F; choose from A, B, C, D, D_S5, E"),
        (lambda: EncoderStudyOptions(encoders=()), "name each encoder once, and one at least"),
        (lambda: RunOptions(where=RuntimeOptions(threads=0)), "`threads` is 0"),
        (lambda: RunOptions(runtime="tflite"), "`runtime` is 'tflite', expected one of onnxruntime"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_python_too(make: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()
