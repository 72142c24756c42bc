"""Progress that increases and estimates the time remaining, and cancelling inside a window."""

import numpy as np
import pytest
import torch
from torch import nn

from conresnet.errors import Cancelled
from conresnet.inference.devices import ForwardMonitor
from conresnet.inference.segmentation import segment
from conresnet.networks import build_network
from conresnet.request import Progress, SegmentOptions, Tracker
from engine.model_cases import make_model
from engine.volumes import grid, random_volume


class Recorded(Progress):
    """Records its reports, and cancels at the ``stop_at``-th check during segmenting."""

    def __init__(self, stop_at: int | None = None):
        self.reports, self.checks, self.stop_at = [], 0, stop_at

    def report(self, phase, fraction, seconds_left):
        self.reports.append((phase, fraction, seconds_left))

    def cancelled(self):
        self.checks += bool(self.reports) and self.reports[-1][0] == "segmenting"
        return self.stop_at is not None and self.checks >= self.stop_at


def test_time_remaining_follows_the_rate_and_fractions_never_decrease():
    now = [0.0]
    progress = Recorded()
    tracker = Tracker(progress, {"preparing": 0.1, "segmenting": 0.8, "writing": 0.1}, lambda: now[0])
    tracker.begin("preparing")
    now[0] += 1
    tracker.begin("segmenting")
    for step in range(1, 101):
        now[0] += 0.4
        tracker.update(step / 100)
        if step == 50:
            # 20 of 40 s are done, and writing takes an eighth of the time of segmenting.
            assert progress.reports[-1][2] == pytest.approx(25, abs=1)
    tracker.update(0.3)
    tracker.begin("writing")
    now[0] += 2
    assert tracker.finish() == pytest.approx({"preparing": 1, "segmenting": 40, "writing": 2})
    fractions = [fraction for _, fraction, _ in progress.reports]
    assert fractions == sorted(fractions) and fractions[-1] == 1
    assert progress.reports[0] == ("preparing", 0, None)


def test_rate_is_measured_separately_for_parts_of_a_phase():
    now = [0.0]
    progress = Recorded()
    tracker = Tracker(progress, {"segmenting": 0.9, "writing": 0.1}, lambda: now[0])
    tracker.begin("segmenting")
    tracker.part(0.0, 0.5)
    for step in range(1, 101):
        now[0] += 1
        tracker.update(step / 100)
    tracker.part(0.5, 1.0)
    assert progress.reports[-1][1] == pytest.approx(0.45)
    for step in range(1, 51):
        now[0] += 0.2
        tracker.update(step / 100)
    # The second part is ten times as fast: 10 of 20 s remain, and writing is a tenth of the total.
    assert progress.reports[-1][1] == pytest.approx(0.45 + 0.225)
    assert progress.reports[-1][2] == pytest.approx(10 + 0.1 * 20 / 0.45, rel=0.1)
    assert tracker.finish() == pytest.approx({"segmenting": 110})


def test_the_fraction_goes_on_growing_when_a_phase_starts_over():
    now = [0.0]
    progress = Recorded()
    tracker = Tracker(progress, {"preparing": 0.2, "segmenting": 0.8}, lambda: now[0])
    tracker.begin("segmenting")
    now[0] += 30
    tracker.update(0.5)
    tracker.start_over()
    assert progress.reports[-1] == ("segmenting", pytest.approx(0.6), None)
    now[0] += 20
    tracker.update(0.5)
    assert progress.reports[-1] == ("segmenting", pytest.approx(0.8), pytest.approx(20))
    now[0] += 20
    tracker.update(1.0)
    assert progress.reports[-1][1] == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["conresnet", "voxresnet", "resdsn", "unet"])
def test_monitor_covers_whole_pass_and_removes_its_hooks(kind):
    network = build_network(kind, {"input_channels": 1, "outputs": 2, "base_width": 8}).eval()
    shares = []
    with torch.inference_mode():
        trial = torch.zeros(1, 1, 16, 16, 16)
        with ForwardMonitor([network], lambda: network(trial, wanted=("segmentation",)), shares.append) as monitor:
            for _ in range(2):
                monitor.restart()
                network(torch.zeros(1, 1, 16, 24, 32), wanted=("segmentation",))
    one = shares[: len(shares) // 2]
    assert one == sorted(one) and one[0] == 0 and one[-1] == pytest.approx(1)
    # No step is so long that a progress bar would seem to hang.
    assert shares == one * 2 and max(np.diff(one)) < 0.3
    convolutions = [layer for layer in network.modules() if isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d))]
    assert len(set(one)) > 0.8 * len(convolutions)


def test_deconvolution_is_weighted_by_its_input_size():
    """4x4x4 with stride 2 makes eight times the voxels, but needs one kernel per input voxel."""
    network = nn.Sequential(nn.Conv3d(8, 8, 3, padding=1), nn.ConvTranspose3d(8, 8, 4, stride=2, padding=1))
    shares, x = [], torch.zeros(1, 8, 16, 16, 16)
    with torch.inference_mode(), ForwardMonitor([network], lambda: network(x), shares.append) as monitor:
        monitor.restart()
        network(x)
    # In addition to the multiply-adds, norms and similar layers count by the size of their output.
    convolution, deconvolution = 8 * 27 + 300, 8 * 64 + 8 * 300
    assert shares[1] == pytest.approx(convolution / (convolution + deconvolution))


def test_progress_of_a_case_with_many_windows(tmp_path):
    model, progress = make_model(tmp_path), Recorded()
    segment(model, [random_volume(grid((60, 40, 40)))], SegmentOptions(threads=1), progress)
    phases = [phase for phase, _, _ in progress.reports]
    assert phases == sorted(phases, key=["preparing", "segmenting", "writing"].index)
    fractions = [fraction for _, fraction, _ in progress.reports]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1


@pytest.mark.parametrize("stop_at", [2, 30, 60])
def test_cancel_takes_effect_inside_a_window(tmp_path, stop_at):
    model, progress = make_model(tmp_path), Recorded(stop_at)
    volume = random_volume(grid((30, 30, 30)))
    with pytest.raises(Cancelled):
        segment(model, [volume], SegmentOptions(threads=1), progress)
    # There is only one window, so it was cancelled inside; and immediately.
    assert progress.checks == stop_at
    assert all(not layer._forward_hooks for layer in model.system.predictors[0].networks[0].modules())
    again = segment(model, [volume], SegmentOptions(threads=1))
    assert again.report["windows"] == 1
