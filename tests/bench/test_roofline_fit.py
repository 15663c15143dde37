"""The cost model's fit on published times."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from conftest import shared_folder, slow_except
from graphs import product
from rtdetr_bench.roofline import fit as fitting
from rtdetr_bench.roofline.estimate import estimate_graph
from rtdetr_bench.roofline.everywhere import in_fp16
from rtdetr_bench.roofline.factors import Factors, fitted_factors, stored_fit
from rtdetr_bench.roofline.fit import FITTED_ON, Workload, find_kernels, fit_factors, published_figures
from rtdetr_bench.roofline.fusion import fuse
from rtdetr_bench.roofline.gpus import GPUS
from rtdetr_bench.roofline.graph import read_graph

T4 = GPUS["t4"]


def test_the_search_finds_the_factors_that_times_were_made_with(half_onnx: Path, small_onnx: Path) -> None:
    """Times of different mixes of compute, bytes and kernels tell all three factors."""
    true = Factors(0.41, 0.79, 5.8)
    graphs = {
        f"{path.stem} {batch}": read_graph(onnx.load(path), batch)
        for path, batch in ((half_onnx, 1), (half_onnx, 16), (half_onnx, 64), (small_onnx, 1))
    }
    graphs["product"] = read_graph(product("float32"))
    workloads = {name: Workload(fuse(one), T4) for name, one in graphs.items()}
    found = fit_factors(workloads, {name: one.time(true) for name, one in workloads.items()})
    assert found.compute == pytest.approx(true.compute, rel=0.01)
    assert found.bandwidth == pytest.approx(true.bandwidth, rel=0.02)
    assert found.launch == pytest.approx(true.launch, rel=0.01)
    for name, one in graphs.items():
        assert workloads[name].time(true) == pytest.approx(estimate_graph(one, T4, true).milliseconds)


def test_the_stored_fit_holds_all_published_figures_and_most_are_not_fitted_on() -> None:
    rows = {row["name"]: row for row in stored_fit()["figures"]}
    figures = {figure.name: figure for figure in published_figures()}
    assert set(rows) == set(figures)
    assert {name for name, row in rows.items() if row["fitted_on"]} == set(FITTED_ON)
    assert len(rows) == 7 + 5 + 6  # variants, depths below R50's own, encoders without its own and with C twice
    for name, row in rows.items():
        assert row["published"] == pytest.approx(figures[name].milliseconds, abs=0.006)
        assert row["bound"] < row["estimate"]
        if row["counts"]:
            assert abs(row["estimate"] / row["published"] - 1) < 0.1, name
    errors = [
        abs(row["estimate"] / row["published"] - 1) for row in rows.values() if row["counts"] and not row["fitted_on"]
    ]
    assert stored_fit()["max_error"] == pytest.approx(max(errors), abs=0.002)
    assert [name for name, row in rows.items() if not row["counts"]] == ["R50, encoder C"]


@pytest.mark.parametrize("name", slow_except([figure.name for figure in published_figures()], "R18"))
def test_the_stored_estimates_are_what_the_model_estimates(name: str) -> None:
    pytest.importorskip("torch")
    figure = next(figure for figure in published_figures() if figure.name == name)
    stored = next(row for row in stored_fit()["figures"] if row["name"] == name)
    kernels = find_kernels(figure)
    assert Workload(kernels, T4).time(fitted_factors()) == pytest.approx(stored["estimate"], abs=0.02)
    flops = sum(count for kernel in kernels for unit, count in kernel.flops.items() if unit != "fp32") / 1e9
    if figure.layers is None and figure.encoder is None:
        from rtdetr_deploy.evaluate.published import COMPLEXITY

        assert flops == pytest.approx(COMPLEXITY[figure.variant][1], rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["r18", "r50"])
def test_graphs_of_the_fit_do_the_work_of_the_released_exporters(variant: str) -> None:
    """Nodes differ (LayerNorm written out, projections one by one); FLOPs don't, and times do by less than 4 %."""
    pytest.importorskip("torch")
    model = onnx.load(shared_folder("peers") / f"released_v1_{variant}.skeleton.onnx")
    (entry,) = (prop for prop in model.metadata_props if prop.key == "random_weights")
    for name, spec in json.loads(entry.value).items():
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(spec["shape"], np.float32), name))
    released = fuse(in_fp16(read_graph(model)))
    ours = find_kernels(next(figure for figure in published_figures() if figure.name == variant.upper()))
    assert sum(kernel.flops.get("fp16", 0) for kernel in ours) == sum(
        kernel.flops.get("fp16", 0) for kernel in released
    )
    factors = fitted_factors()
    assert Workload(ours, T4).time(factors) == pytest.approx(Workload(released, T4).time(factors), rel=0.04)


def test_the_fit_is_printed_and_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels = fuse(read_graph(product()))
    monkeypatch.setattr(fitting, "find_kernels", lambda _: kernels)
    target = tmp_path / "fit.json"
    assert fitting.main(["--output", str(target)]) == 0
    out = capsys.readouterr().out
    assert "of the peak rates" in out
    assert "rejected reading" in out
    content = json.loads(target.read_text())
    assert set(content) == set(stored_fit())
    assert Factors(**content["factors"])
    assert fitting.main([]) == 0
