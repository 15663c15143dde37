"""Results by hand, as `--json` writes them, with names that are hostile."""

from __future__ import annotations

from typing import Any

HOSTILE = "<script>alert(1)</script>"


def model_row(name: str, scale: float, ap: float | None) -> dict[str, Any]:
    def spans(value: float) -> dict[str, float]:
        return dict.fromkeys(("p50", "p90", "p99", "mean", "min"), value * scale)

    times = {"prepare": spans(1), "infer": spans(20), "decode": spans(0.5)}
    times |= {"paper's span": spans(20.5), "whole call": spans(21.5)}
    facts = {"kind": "YOLO", "runtime": "ONNX Runtime", "NMS": "cv2"}
    return {
        "name": name, "facts": facts, "batch": 1, "opened_seconds": 0.1, "memory_mb": 100.0, "warmup_calls": 6,
        "images_per_second": 40.0, "AP": ap, "milliseconds": times, "samples": {}, "nms_input_boxes": None,
    }  # fmt: skip


def all_results() -> dict[str, Any]:
    """Return what `--json` writes when everything is asked for at once."""
    ratio = {"value": 1.2, "low": 1.1, "high": 1.3}
    pair = {"name": HOSTILE, "base": "ours.onnx", "batch": 1, "paper": ratio, "whole": ratio}
    row = {"milliseconds": {"paper's span": {"p50": 5.0}}, "AP": 0.5, "parameters_million": 20.0, "samples": {}}
    nms = [
        {
            "threshold": c,
            "iou": i,
            "milliseconds": {"cv2": 1 / c, "numpy": 2 / c},
            "slowest": 3 / c,
            "kept": 9,
            "ap": 0.5,
        }
        for c in (0.001, 0.25)
        for i in (0.5, 0.7)
    ]
    models = [model_row("ours.onnx", 1.0, 0.63), model_row(HOSTILE, 1.2, None)]
    return {
        "schema": 4,
        "date": "2026-11-24T06:54:02Z",
        "command": ["rtdetr-bench", "--engine", "my model.onnx"],
        "options": {"threads": None},
        "machine": {"processor": "EPYC", "cores": 2, "system": "Linux", "python": "3.11", "packages": {"numpy": "2"}},
        "state": {"load": 0.5},
        "comparison": {
            "threshold": 0.001, "rounds": 40, "models": models, "pairs": [pair], "state": {"load": 1.5},
            "real_images": False,
        },
        "nms": {
            "model": "yolo.onnx", "images": 3, "rounds": 3, "boxes_left": {"0.001": 500.0, "0.5": 0.0}, "rows": nms,
            "rtdetr": "ours.onnx", "rtdetr_by_threshold": {"0.001": {"decode_ms": 0.1, "AP": 0.6}},
        },
        "decoder": {
            "weights": "a.pth",
            "rounds": 60,
            "rows": [{"name": f"{n} layers", "ratio": [n / 3, n / 4, n / 2], **row} for n in (3, 2, 1)],
        },
        "encoder": {
            "variant": "r50", "rounds": 15, "rows": [{"name": n, "ratio": [1.0, 0.9, 1.1], **row} for n in ("A", "E")],
        },
        "scenarios": [
            {
                "model": "<script>", "scenario": "MultiStream", "metric": "p99 ms", "value": 8.125, "bound": None,
                "samples": [8.0, 9.0], "images": 16, "batch": 4, "threads": 2, "images_per_second": 900.0,
                "doubt": "a guess",
            }
        ],
        "roofline": {
            "gpu": {"name": "Tesla T4"}, "factors": {"compute": 0.4, "bandwidth": 0.8, "launch": 5.5},
            "max_error": 0.05,
            "models": [{
                "name": HOSTILE, "milliseconds": 5.0, "bound": 2.0, "in_fp16": 4.0, "gflops": 9.0,
                "megabytes": 8.0, "kernel_count": 1, "casts": 3, "cast_kernels": 1, "cast_milliseconds": 0.1,
                "all_fp32": False, "parts": [{"name": "backbone", "milliseconds": 5.0, "bound": 2.0, "sampler": 0.0}],
                "kernels": [{
                    "nodes": ["<i>", "b"], "part": "backbone", "flops": {"fp16": 9e9}, "read": 1, "written": 2,
                    "bound": 2.0, "ms": 5.0,
                }],
                "islands": [{"module": "decoder/<b>", "milliseconds": 1.0, "in_fp16": 0.5, "cost": 0.5, "casts": 3}],
            }],
        },
    }  # fmt: skip


def sweep() -> dict[str, Any]:
    """Return what `rtdetr-bench sweep` writes: 24 configurations on or below the front, one that failed."""
    rows = [
        sweep_row(layers, queries, way, 10.0 * (1 + index), 0.5 + 0.02 * index - 0.01 * (queries == 100))
        for index, (layers, way) in enumerate((n, way) for n in (1, 2, 3) for way in WAYS)
        for queries in (100, 300)
    ]
    rows.append({
        **sweep_row(1, 100, ("int8", "openvino", "fp32"), 0.0, 0.0), "name": HOSTILE, "failed": "no room for </script>",
        "front": False, "offline_front": False,
    } | dict.fromkeys(FIGURES))  # fmt: skip
    machine = {**all_results()["machine"], "instructions": ["avx2", "avx512", "vnni", "bf16"]}
    return {
        "kind": "sweep", "weights": "r50.pth", "machine": machine, "annotations": "val.json", "images": 87,
        "limits": {"budget_ms": 90.0, "min_ap": None, "within": None}, "rows": rows, "recommended": rows[5]["name"],
        "recommendation": "Deploy 1 layer: within 90 ms & <most> accurate.",
    }  # fmt: skip


WAYS = (
    ("fp32", "onnxruntime", "fp32"), ("fp32", "openvino", "fp32"), ("fp32", "openvino", "bf16"),
    ("int8", "openvino", "bf16"),
)  # fmt: skip
FIGURES = (
    "single_stream_p90_ms", "multi_stream_p99_ms", "offline_images_per_second", "AP", "AP50", "match_rate", "file_mb",
)  # fmt: skip


def sweep_row(layers: int, queries: int, way: tuple[str, str, str], time: float, ap: float) -> dict[str, Any]:
    """Return a configuration that was measured; with 300 queries it is on the front."""
    precision, runtime, arithmetic = way
    name = f"l{layers}-q{queries}-640x640-{precision}@{runtime}:{arithmetic}"
    return {
        "name": name, "layers": layers, "queries": queries, "cascade": None, "size": [640, 640], "precision": precision,
        "runtime": runtime, "arithmetic": arithmetic, "batch": 1, "single_stream_p90_ms": time,
        "multi_stream_p99_ms": 8 * time, "offline_images_per_second": 1000 / (time or 1), "AP": ap, "AP50": 1.2 * ap,
        "match_rate": 0.99, "file_mb": 80.0, "export_command": f"rtdetr-export --weights r50.pth --layers {layers}",
        "run_hint": f'Predictor("model.onnx", runtime="{runtime}")', "failed": None, "front": queries == 300,
        "offline_front": queries == 300, "brief_median_ms": time, "note": None,
    }  # fmt: skip


def precision_study() -> dict[str, Any]:
    """Return what `rtdetr-bench precision` writes: two files measured, one refused."""
    file = {"int8": 0.0, "megabytes": 80.0, "nodes": {"fp32": 513, "casts": 0}}
    measured = {"AP": 0.63, "matched": {"0.5 px, 0.01": 0.25, "2 px, 0.05": 0.875}, "spurious": 7}
    rows = [{"file": name, **file, **measured} for name in ("FP32", "<i>INT8</i>")]
    rows.append({"file": "other", **file, "refused": "no kernel for <b>"})
    head = {name: value for name, value in all_results().items() if name in HEAD}
    return {**head, "weights": "r18.pth", "annotations": "val.json", "expected": 1970, "rows": rows}


def ablation_study() -> dict[str, Any]:
    """Return what `rtdetr-bench ablation` writes, with a cascade."""
    metrics = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl"), 0.5)
    setting = {"runtime": "onnxruntime", "layers": 3, "queries": 300, "resizer": "opencv", "per_class": {"RBC": 0.5}}
    timed = {"milliseconds": {"paper's span": {"p50": 12.25}}}
    rows = [
        {**setting, "cascade": None, "metrics": metrics, "ratio": [1.0, 1.0, 1.0], **timed},
        {**setting, "cascade": "1:100", "metrics": {**metrics, "AP": 0.4875}, "ratio": [0.9, 0.8, 1.0], **timed},
        {**setting, "cascade": None, "layers": 2, "metrics": {**metrics, "AP": 0.48}},
    ]
    head = {name: value for name, value in all_results().items() if name in HEAD}
    return {**head, "weights": "r18.pth", "annotations": "val.json", "images": 87, "rows": rows}


def profile_study() -> dict[str, Any]:
    """Return what `rtdetr-bench profile` writes."""
    parts = [
        {"name": "backbone", "nodes": 40, "ms": 50.0, "floor_ms": 40.0},
        {"name": HOSTILE, "nodes": 9, "ms": 20.0, "floor_ms": 12.0},
    ]
    longest = [{"name": f"node {n}", "operator": "Conv", "kernel": "", "ms": float(n)} for n in range(30, 0, -1)]
    study = {
        "name": "r18.onnx", "runtime": "openvino", "call_ms": 72.0, "nodes_ms": 70.0, "gflops": 60.0, "floor_ms": 52.0,
        "reached": 0.722, "peaks": {"fp32": 478.0}, "parts": parts, "nodes": 49,
        "longest": longest,
        "operators": [{"name": "Conv", "nodes": 49, "ms": 70.0, "floor_ms": None}],
    }  # fmt: skip
    return {**{name: value for name, value in all_results().items() if name in HEAD}, "profile": study}


HEAD = ("schema", "date", "command", "options", "machine", "state")
