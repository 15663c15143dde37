"""AdamW groups, the learning rate of each step, and the moving average."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from rtdetr_train.initialize import build_model  # noqa: E402
from rtdetr_train.optim import ema_updates, lr_factor, make_ema, make_optimizer, make_schedule  # noqa: E402
from rtdetr_train.options import TrainOptions  # noqa: E402


def test_norms_and_biases_have_no_decay_and_the_backbone_a_lower_rate(train_options: TrainOptions) -> None:
    model = build_model(train_options, ("a", "b"))
    groups = {id(p): group for group in make_optimizer(model, train_options).param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        group = groups[id(parameter)]
        assert group["weight_decay"] == (0.0 if parameter.ndim <= 1 else 1e-4), name
        assert group["lr"] == pytest.approx(1e-5 if name.startswith("backbone.") else 1e-4), name


def test_the_rate_is_warmed_up_and_goes_down_to_a_hundredth() -> None:
    assert [lr_factor(step, 100, 10) for step in (0, 9, 10, 55, 100)] == pytest.approx([0.1, 1.0, 1.0, 0.505, 0.01])


def _rates(steps: int, warmup: int, done: int, count: int) -> list[tuple[float, ...]]:
    """Return the rates of two groups in the next `count` steps of a run of which `done` steps are done."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (1e-3, 1e-4)]
    optimizer = torch.optim.AdamW(groups)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]  # as a restored optimizer has it
    schedule = make_schedule(optimizer, steps, warmup, done)
    found = []
    for _ in range(count):
        found.append(tuple(group["lr"] for group in optimizer.param_groups))
        optimizer.step()
        schedule.step()
    return found


def test_a_schedule_that_is_made_in_the_middle_of_a_run_goes_on_as_one_from_its_start() -> None:
    whole = _rates(40, 3, 0, 40)
    assert whole[7:] == _rates(40, 3, 7, 33)
    assert whole[1] == pytest.approx((2e-3 / 3, 2e-4 / 3))
    assert max(whole) == whole[3] == (1e-3, 1e-4)


def test_warmup_takes_a_tenth_of_the_run_at_most() -> None:
    assert [rate for rate, _ in _rates(20, 2000, 0, 3)] == pytest.approx([5e-4, 1e-3, 1e-3])


def test_the_average_follows_weights_and_statistics_by_its_formula_and_copies_counters() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    ema = make_ema(model, decay=0.9, ramp=2.0)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for update in (1, 2, 3):
        with torch.no_grad():
            for value in model.state_dict().values():
                value.add_(1)
        ema.update_parameters(model)
        decay = 0.9 * (1 - math.exp(-update / 2.0))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
    assert ema_updates(ema) == 3
    found = ema.module.state_dict()
    assert int(found.pop("1.num_batches_tracked")) == 3
    for name, value in found.items():
        assert torch.allclose(value, expected[name], atol=1e-6), name
    assert not any(module.training for module in ema.modules())
    assert not any(parameter.requires_grad for parameter in ema.parameters())
