"""Windows and mirrored copies processed in batches, and the code for GPUs, tested on the CPU."""

import copy
import itertools
import weakref

import numpy as np
import pytest
import torch

from conresnet.inference import fitted_windows
from conresnet.inference.devices import Backend
from conresnet.inference.labels import exclusive_labels
from conresnet.inference.segmentation import load_model, segment
from conresnet.inference.sliding import slide
from conresnet.request import Progress, SegmentOptions
from engine.model_cases import description, make_model, use_test_networks, write_model
from engine.volumes import grid, random_volume

CPU = torch.device("cpu")
MAPS = ("probability", "residual", "attention", "features")


@pytest.mark.parametrize("axes", [[], ["W"], ["S", "H"]])
@pytest.mark.parametrize("batch", [2, 3, 16])
def test_batch_gives_same_result_as_single_windows(tmp_path, axes, batch):
    (predictor,) = make_model(tmp_path, inference={"mirror_axes": axes}).system.predictors
    predictor.place(Backend(CPU, "fp32"))
    windows = torch.randn(3, 1, 16, 24, 16, generator=torch.Generator().manual_seed(0))
    together = predictor.predict(windows, MAPS, True, batch)
    for window, answer in zip(windows, together, strict=True):
        (alone,) = predictor.predict(window[None], MAPS, True, 1)
        assert answer.keys() == alone.keys() == set(MAPS)
        for name, value in alone.items():
            assert value.std() > 1e-3
            assert (answer[name] - value).abs().max() < 1e-4 * value.abs().max()


def test_mirrored_copies_are_flipped_back_and_averaged(tmp_path):
    """The reference is the mean of the network's outputs over all four ways to mirror two axes."""
    model = make_model(tmp_path, scale=2, inference={"mirror_axes": ["S", "W"]})
    (predictor,) = model.system.predictors
    predictor.place(Backend(CPU, "fp32"))
    assert (predictor.copies(), predictor.copies(mirrors=False)) == (4, 1)
    window = torch.randn(1, 1, 16, 24, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        outputs = [
            torch.softmax(predictor.placed[0](window.flip(axes))["segmentation"], 1)[0, 1:].flip([a - 1 for a in axes])
            for axes in [(), (2,), (4,), (2, 4)]
        ]
    for batch in (1, 3, 4):
        (answer,) = predictor.predict(window, (), True, batch)
        assert (answer["probability"] - sum(outputs) / 4).abs().max() < 1e-4


def test_batches_have_expected_sizes(tmp_path, monkeypatch):
    """Small windows are batched with their mirrored copies; the last batch has the remaining ones."""
    use_test_networks(monkeypatch)
    inference = {"window": [64, 64, 64], "overlap": 0.0, "mirror_axes": ["W"]}
    # A model of crops would process these images in single windows.
    document = description("pointwise", preparation={"roi": "limit"}, inference=inference)
    model = load_model(write_model(tmp_path / "model", document), "cpu", "fp32")
    sizes = []
    model.system.predictors[0].networks[0].register_forward_hook(
        lambda _, inputs, __: sizes.append(tuple(inputs[0].shape))
    )
    segment(model, [random_volume(grid((64, 64, 192)))], SegmentOptions(threads=1))
    assert sizes[1:] == [(2, 1, 64, 64, 64)] * 3
    sizes.clear()
    segment(model, [random_volume(grid((32, 64, 192)))], SegmentOptions(threads=1))
    assert sizes[1:] == [(4, 1, 32, 64, 64), (2, 1, 32, 64, 64)]
    assert Backend(CPU, "fp32").batch((80, 160, 160)) == 1


@pytest.mark.parametrize("together", [1, 3])
def test_outputs_are_freed_before_next_windows_are_computed(together):
    plan, held = fitted_windows((slice(0, 40),) * 3, (40, 40, 40), (24, 24, 24), 0.5), []

    def predict(shown):
        assert not any(reference() is not None for reference in held)
        outputs = [{"a": torch.ones(1, *plan.size)} for _ in shown]
        held.extend(weakref.ref(answer["a"]) for answer in outputs)
        return outputs

    def block(start, size):
        return np.zeros((1, *size), np.float32)

    slide(predict, block, plan, (40, 40, 40), "gaussian", lambda where, values: None, together)
    assert len(held) == len(plan) > together


def test_half_precision_weights_are_made_once_and_original_is_kept(tmp_path):
    network = make_model(tmp_path).system.predictors[0].networks[0]
    before = copy.deepcopy(network.state_dict())
    placed = Backend(CPU, "bf16").placed(network)
    convolutions = [layer for layer in placed.modules() if isinstance(layer, torch.nn.Conv3d)]
    assert {layer.weight.dtype for layer in convolutions} == {torch.bfloat16}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert Backend(CPU, "fp32").placed(network) is network
    x = torch.randn(1, 1, 16, 16, 16).to(memory_format=torch.channels_last_3d)
    plain = copy.deepcopy(network).to(memory_format=torch.channels_last_3d)
    with torch.inference_mode(), Backend(CPU, "bf16").computing():
        assert torch.equal(placed(x)["segmentation"], plain(x)["segmentation"])


def test_device_is_synchronized_before_progress_is_reported(tmp_path, monkeypatch):
    """Calls to a GPU return immediately, so progress would otherwise be complete before the work has begun."""
    events = []

    class Listening(Progress):
        def report(self, phase, fraction, seconds_left):
            events.append(phase)

    monkeypatch.setattr(Backend, "wait", lambda backend: events.append("wait"))
    monkeypatch.setattr("conresnet.request.Tracker._SECONDS_BETWEEN_REPORTS", 0.0)
    monkeypatch.setattr("conresnet.inference.sliding._WAIT", 0.0)
    model, volume = make_model(tmp_path), random_volume(grid((40, 40, 40)))
    segment(model, [volume], SegmentOptions(threads=1), Listening())
    inside = events[events.index("wait") : len(events) - events[::-1].index("wait")]
    assert len(inside) > 100 and all(one == "wait" for one in inside[::2])
    events.clear()
    monkeypatch.setattr("conresnet.inference.sliding._WAIT", 1000.0)
    segment(model, [volume], SegmentOptions(threads=1), Listening())
    assert "wait" not in events, "waiting at every tick would leave the GPU without work"


def test_gpu_transfers_use_pinned_memory_and_do_not_block(monkeypatch):
    done = []

    def pinned(tensor):
        done.append("pinned")
        return tensor

    def to(tensor, **how):
        done.append(how)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.Tensor, "to", to)
    Backend(torch.device("cuda:1"), "bf16").take(torch.zeros(1, 1, 8, 8, 8))
    kept = {"device": torch.device("cuda:1"), "memory_format": torch.channels_last_3d, "non_blocking": True}
    assert done == ["pinned", kept]


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("spacing", [None, [2.0, 2.0, 2.0]])
def test_only_small_types_are_copied_from_device(tmp_path, monkeypatch, regions, spacing):
    copied = []
    cpu = torch.Tensor.cpu
    model = make_model(tmp_path, regions=regions, preparation={"spacing": spacing})
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: copied.append(tensor.dtype) or cpu(tensor))
    segment(model, [random_volume(grid((40, 40, 40)))], SegmentOptions(threads=1, maps=("attention", "probability")))
    assert copied and set(copied) <= {torch.uint8, torch.bool, torch.float16}


def test_most_likely_segment_matches_sum_and_argmax():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(7, 5, 6, 7)).astype(np.float32)
    probability = np.exp(logits) / np.exp(logits).sum(axis=0)
    values = np.array([3, 9, 200, 1, 2, 4], np.uint8)
    expected = np.concatenate([[0], values]).astype(np.uint8)[probability.argmax(axis=0)]
    found = exclusive_labels(torch.from_numpy(probability[1:]), values)
    assert found.dtype == torch.uint8 and np.array_equal(found.numpy(), expected)
    # Of equal values, the first one wins; the background wins where a segment only equals it.
    even = torch.tensor([[0.4, 0.25, 0.5], [0.4, 0.25, 0.0]])
    assert exclusive_labels(even, [5, 6]).tolist() == [5, 0, 0]
    for order in itertools.permutations(range(3)):
        three = torch.tensor([0.5, 0.3, 0.1])[list(order), None]
        assert exclusive_labels(three, [1, 2, 3]).item() == 1 + order.index(0)
