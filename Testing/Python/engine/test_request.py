"""A request is described once; the command line, JSON and Python all use this description."""

import json
from dataclasses import dataclass, fields

import numpy as np
import pytest

from conresnet.cli.segment import segment
from conresnet.images import Volume
from conresnet.images.inputs import BoxROI
from conresnet.request import SegmentOptions, SegmentRequest, flag
from engine.package_cases import refusal
from engine.volumes import grid, random_volume

BOX = BoxROI.from_bounds([0, 10, -5, 5, 20, 40])
OPTIONS = SegmentOptions(
    roi=BOX,
    maps=("residual", "probability"),
    device="cuda:1",
    precision="bf16",
    tiling="authors",
    threads=3,
    fast=True,
    keep_largest=True,
    drop_below=0.5,
    fill_holes=True,
    seg_nrrd=True,
    review=True,
    statistics=True,
    report=True,
    report_name="a case",
)


def test_every_option_is_on_the_command_line():
    given = {parameter.name: parameter for parameter in segment.params}
    for item in fields(SegmentOptions):
        parameter = given[item.name]
        assert parameter.opts == [f"--{item.name.replace('_', '-')}"] and parameter.help == item.metadata["spec"].help
        assert parameter.default is None or parameter.to_info_dict()["default"] is None


def test_request_round_trips_through_json(tmp_path):
    volumes = tuple(random_volume(grid((3, 4, 5)), seed=seed) for seed in (1, 2))
    paths = [tmp_path / f"{number}.npy" for number in (1, 2)]
    for path, volume in zip(paths, volumes, strict=True):
        np.save(path, volume.array)
    sent = json.loads(json.dumps(SegmentRequest("a model", volumes, OPTIONS).to_dict(paths)))
    assert all(getattr(OPTIONS, item.name) != item.default for item in fields(SegmentOptions)), "each one is tried"
    arrived = SegmentRequest.from_dict(sent)
    assert arrived.model == "a model"
    for volume, channel in zip(volumes, arrived.channels, strict=True):
        assert np.array_equal(volume.array, channel.array) and volume.name == channel.name
        assert channel.grid.matches(volume.grid)
    for item in fields(SegmentOptions):
        if item.name != "roi":
            assert getattr(arrived.options, item.name) == getattr(OPTIONS, item.name)
    assert arrived.options.roi.to_dict() == BOX.to_dict()


def test_options_affect_labels_unless_declared_otherwise():
    @dataclass(frozen=True)
    class MoreOptions(SegmentOptions):
        smooth: bool = flag("Smooth the labels.")

    assert MoreOptions(smooth=True, fast=True).of_labels() == {"smooth": True, "fast": True}
    others = SegmentOptions(maps=("residual",), device="cpu", threads=2, review=True, statistics=True, report=True)
    assert others.of_labels() == {}


def test_default_values_are_not_sent():
    assert SegmentOptions().to_dict() == {} and SegmentOptions.from_dict({}) == SegmentOptions()


@pytest.mark.parametrize(
    ("code", "values"),
    [
        ("bad-request", {"sharpness": 1}),
        ("bad-request", {"maps": "residual"}),
        ("bad-request", {"maps": [1]}),
        ("bad-request", {"device": None}),
        ("bad-request", {"precision": ""}),
        ("bad-request", {"threads": 0}),
        ("bad-request", {"threads": True}),
        ("bad-request", {"fast": 1}),
        ("bad-request", {"drop_below": 0}),
        ("bad-request", {"drop_below": "1"}),
        ("bad-request", {"review": 1}),
        ("bad-request", {"roi": [1, 2]}),
        ("bad-roi", {"roi": {"center": [0, 0, 0]}}),
    ],
)
def test_unknown_options_are_refused(code, values):
    refusal(code, SegmentOptions.from_dict, values)


def test_request_requires_a_model_and_channels(tmp_path):
    volume = Volume(np.zeros((2, 2, 2)), grid((2, 2, 2)), "a")
    np.save(tmp_path / "a.npy", volume.array)
    right = SegmentRequest("m", (volume,)).to_dict([tmp_path / "a.npy"])
    for key, value in (("model", None), ("channels", []), ("channels", [1]), ("options", [])):
        refusal("bad-request", SegmentRequest.from_dict, {**right, key: value})
    (channel,) = right["channels"]
    for key, value in (("npy", ""), ("name", None), ("grid", None)):
        refusal("bad-request", SegmentRequest.from_dict, {**right, "channels": [{**channel, key: value}]})
    missing = {**channel, "npy": str(tmp_path / "none.npy")}
    refusal("channel-unreadable", SegmentRequest.from_dict, {**right, "channels": [missing]})
