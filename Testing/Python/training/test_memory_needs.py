"""Estimated memory of training compared with the memory it uses."""

import json
import math
import sys

import pytest

from conresnet.errors import UserError
from conresnet_training.planning import memory
from conresnet_training.planning.memory import USED_SHARE, Budget, StepCost, check_memory, fit_memory
from conresnet_training.planning.plan import Plan, read_plan, with_settings
from conresnet_training.planning.systems import SYSTEMS, Frame
from conresnet_training.runs.run import Run
from conresnet_training.training import trainer
from peak_memory import REASON
from training.data_folders import peak_memory
from training.tiny_plan import write_tiny_plan

conresnet = SYSTEMS["conresnet"].build
FRAME = Frame(channels=4, segments=3, exclusive=False, base_width=16, residual_axis="S", batch=2)


def test_less_memory_gives_narrower_network_then_smaller_batch_and_window():
    window, fits = (80, 160, 160), []
    for gigabytes in (80, 24, 12, 3):
        budget = Budget.given(gigabytes)
        fit = fit_memory(budget, conresnet, FRAME, window)
        cost = StepCost.of(conresnet(Frame(4, 3, False, fit.width, "S", fit.batch)), 3)
        assert fit.bytes == cost.bytes(fit.batch, fit.window) <= USED_SHARE * budget.bytes
        fits.append(fit)
    assert (fits[0].width, fits[0].batch, fits[0].window) == (32, 2, window)
    assert [(fit.width, fit.batch) for fit in fits[1:3]] == [(16, 2), (16, 1)]
    sizes = [fit.width * fit.batch * math.prod(fit.window) for fit in fits]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[-2]
    assert all(side % 8 == 0 and side >= 32 for fit in fits for side in fit.window)
    with pytest.raises(UserError, match=r"Even the smallest network needs .* GB of memory \(available: 0.5 GB"):
        fit_memory(Budget.given(0.5), conresnet, FRAME, window)


def test_small_windows_give_larger_batch_if_gpu_memory_allows():
    window, image = (40, 56, 40), 40 * 56 * 40
    large, small, cpu = Budget.given(80), Budget.given(10), Budget(80 * 2**30, (16, 8), "this computer")
    # 2^21 voxels are 23.4 windows; a twentieth of 200 cases is 10.
    assert [large.largest_batch(window, cases * image) for cases in (1000, 200, 60, 3)] == [22, 10, 2, 2]
    assert large.largest_batch((80, 160, 160), 1000 * image) == cpu.largest_batch(window, 1000 * image) == 2
    fits = [fit_memory(budget, conresnet, FRAME, window, 22) for budget in (large, small)]
    assert (fits[0].width, fits[0].batch, fits[0].window) == (32, 22, window)
    assert fits[1].width == 32 and fits[1].window == window and 2 < fits[1].batch < 22
    for fit, budget in zip(fits, (large, small), strict=True):
        cost = StepCost.of(conresnet(Frame(4, 3, False, 32, "S", fit.batch)), 3)
        assert fit.bytes == cost.bytes(fit.batch, window) <= USED_SHARE * budget.bytes
        assert fit.batch == 22 or cost.bytes(fit.batch + 2, window) > USED_SHARE * budget.bytes


def test_batch_norm_is_not_counted_for_batches_too_small_for_it():
    """The network is built for the batch being tried, because its norm depends on it."""
    built = []

    def build(frame: Frame) -> dict:
        built.append((frame.base_width, frame.batch))
        return conresnet(frame)

    fit_memory(Budget.given(12), build, FRAME, (80, 160, 160))
    assert built == [(32, 2), (16, 2), (16, 1)]


@pytest.fixture
def plan(data_set) -> Plan:
    return read_plan(write_tiny_plan(data_set, data_set.parent / "plan.yaml"))


def test_window_that_cannot_fit_is_refused_before_writing(plan, tmp_path):
    run = Run(tmp_path / "run", with_settings(plan, ["model.inference.window=[2048, 2048, 2048]"]), 0)
    with pytest.raises(UserError) as caught:
        trainer.fit(run, most_steps=1, is_new=True, device="cpu")
    assert caught.value.code == "step-exceeds-memory" and not run.folder.exists()


def test_window_that_probably_does_not_fit_gets_a_warning(plan, monkeypatch):
    window, batch = (64, 64, 64), 2
    wide = with_settings(plan, [f"model.inference.window={list(window)}"])
    network = wide.model.system.networks[0]
    needed = StepCost.of({"type": network.type, "arguments": network.arguments}, 2).bytes(batch, window)
    for free, is_short in ((needed - 1, True), (needed, False), (None, False)):
        monkeypatch.setattr(memory, "available_memory", lambda free=free: free)
        assert bool(check_memory(wide, batch)) == is_short
    # Small steps are not estimated, so they start immediately.
    monkeypatch.setattr(memory, "available_memory", lambda: 0)
    assert not check_memory(plan, batch)


STEP = """
import json, sys
import torch
from conresnet.networks import build_network
from conresnet_training.training import total_loss

plan, *window = map(json.loads, sys.argv[1:])
network = build_network(plan["type"], plan["arguments"])
optimizer = torch.optim.Adam(network.parameters())
target = torch.zeros(2, 2, *window)
target[:, 0, 4:20, 4:20, 4:20] = 1
for _ in range(2):
    outputs = network(torch.randn(2, 1, *window))
    weights = network.auxiliary_weights(0.0) if "auxiliary" in outputs else ()
    losses = total_loss(outputs, target, True, "S", 0.5, auxiliary_weights=weights)
    del outputs
    optimizer.zero_grad()
    losses["loss"].backward()
    optimizer.step()
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason=REASON)
@pytest.mark.parametrize("system", ["conresnet", "voxresnet-auto-context", "resdsn", "unet", "pyramid"])
def test_memory_estimate_is_close_to_use_of_a_step(system):
    network = SYSTEMS[system].build(Frame(1, 2, True, 16, "S", 2))
    windows = ((24, 32, 32), (40, 64, 56))
    small, large = (peak_memory(STEP, json.dumps(network), *window) for window in windows)
    counted = [StepCost.of(network, 2).bytes(2, window) for window in windows]
    assert large <= counted[1]
    assert 0.5 < (large - small) / (counted[1] - counted[0]) < 1.25
