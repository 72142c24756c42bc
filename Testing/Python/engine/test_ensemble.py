"""Models with several networks: their combined outputs, their description, and invalid ones."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import conresnet
from conresnet.cli import main
from conresnet.errors import Cancelled
from conresnet.inference.devices import choose_backend
from conresnet.inference.segmentation import load_model, segment
from conresnet.networks import build_network
from conresnet.package import parse_description
from conresnet.package.reader import ModelPackage
from conresnet.package.store import write_package
from conresnet.request import Progress, SegmentOptions
from conresnet.systems.predictors import Predictor
from engine.model_cases import WEIGHTS, description, use_test_networks, write_model
from engine.package_cases import refusal
from engine.volumes import grid, random_volume

MAPS = ("probability", "residual", "attention", "features")


def ensemble_of(document: dict[str, Any], count: int) -> dict[str, Any]:
    """The same model with ``count`` networks."""
    document = copy.deepcopy(document)
    network = document["system"]["networks"][0]
    document["system"] = {
        "type": "ensemble",
        "networks": [{**copy.deepcopy(network), "weights": f"network_{index}.safetensors"} for index in range(count)],
    }
    return document


def write_ensemble(folder: Path, document: dict[str, Any], members: list[ModelPackage]) -> ModelPackage:
    """Write a package with the weights of the single models."""
    files = {f"network_{index}.safetensors": member.read_file(WEIGHTS) for index, member in enumerate(members)}
    return write_package(parse_description(document), files, folder)


def make_members(folder: Path, count: int, **settings: Any) -> tuple[list[ModelPackage], ModelPackage]:
    """Make single models with random weights, and the ensemble of them."""
    document = description(**settings)
    members = [write_model(folder / f"member {index}", document, seed=index, scale=3) for index in range(count)]
    return members, write_ensemble(folder / "ensemble", ensemble_of(document, count), members)


def run(package: ModelPackage, volume, **options: Any):
    return segment(load_model(package, "cpu", "fp32"), [volume], SegmentOptions(threads=1, **options))


WINDOWS = {"window": [24, 24, 24], "mirror_axes": ["W"]}


@pytest.mark.parametrize(
    ("regions", "inference"),
    [
        (False, {}),
        (True, WINDOWS),
        pytest.param(False, WINDOWS, marks=pytest.mark.slow),
        pytest.param(True, {}, marks=pytest.mark.slow),
    ],
)
def test_every_map_is_the_mean_of_the_members(tmp_path, regions, inference):
    members, together = make_members(tmp_path, 3, regions=regions, inference=inference)
    volume = random_volume(grid((28, 24, 26)))
    singles = [run(member, volume, maps=MAPS) for member in members]
    result = run(together, volume, maps=MAPS)
    assert result.report["windows"] == singles[0].report["windows"]
    for name in MAPS:
        each = np.stack([single.maps[name].astype(np.float64) for single in singles])
        assert np.ptp(each, axis=0).mean() > 0
        # As precise as half precision, in which maps are returned.
        assert np.abs(result.maps[name] - each.mean(axis=0)).max() <= 1e-3 * np.abs(each).max(), name
    # Disagreement is the ensemble's uncertainty minus the mean uncertainty of its members.
    maps = run(together, volume, maps=("uncertainty", "disagreement")).maps
    own = np.mean([run(member, volume, maps=("uncertainty",)).maps["uncertainty"][0] for member in members], axis=0)
    if not regions and not inference:
        assert maps["disagreement"][0] == pytest.approx(maps["uncertainty"][0] - own, abs=5e-3)
    assert 0.01 < maps["disagreement"].mean() < maps["uncertainty"].mean()
    differing = [np.mean(result.labels.array != single.labels.array) for single in singles]
    assert max(differing) > 0


def test_networks_with_different_widths_and_maps_can_be_combined(tmp_path):
    document = ensemble_of(description(), 2)
    document["system"]["networks"][1]["arguments"] |= {"base_width": 16, "attention_mapping": False}
    files = {}
    for network in document["system"]["networks"]:
        weights = build_network(network["type"], network["arguments"]).state_dict()
        files[network["weights"]] = safetensors.torch.save(weights)
    package = write_package(parse_description(document), files, tmp_path / "mixed")
    volume = random_volume(grid((16, 16, 16)))
    assert set(run(package, volume, maps=("residual", "features")).maps) == {"residual", "features"}
    assert "no attention map" in refusal("map-unavailable", run, package, volume, maps=("attention",))


def test_progress_covers_all_members_and_cancel_works_in_last_one(tmp_path):
    package = make_members(tmp_path, 3)[1]
    volume = random_volume(grid((32, 32, 32)))

    class Watched(Progress):
        def __init__(self, stop_at: int = 10**9):
            self.checks, self.stop_at = 0, stop_at

        def cancelled(self):
            self.checks += 1
            return self.checks >= self.stop_at

    whole, one = Watched(), Watched()
    model = load_model(package, "cpu", "fp32")
    segment(model, [volume], SegmentOptions(threads=1), whole)
    single = load_model(write_model(tmp_path / "single", description()), "cpu", "fp32")
    segment(single, [volume], SegmentOptions(threads=1), one)
    assert whole.checks > 2.5 * one.checks
    late = Watched(int(0.9 * whole.checks))
    with pytest.raises(Cancelled):
        segment(model, [volume], SegmentOptions(threads=1), late)
    assert late.checks == late.stop_at


def test_memory_per_window_does_not_grow_with_number_of_networks(monkeypatch, tmp_path):
    """At most two of the members' outputs are in memory at once: the sum and the latest one."""
    use_test_networks(monkeypatch)
    package = make_members(tmp_path, 5, network="pointwise")[1]
    model = load_model(package, "cpu", "fp32")
    (ensemble,) = model.system.predictors
    ensemble.place(choose_backend("cpu", "fp32"))
    plain = Predictor._answers
    alive: list[int] = []
    held: list = []

    def counted(*arguments):
        outputs = plain(*arguments)
        gc.collect()
        held.append(weakref.ref(outputs[0]["probability"]))
        alive.append(sum(reference() is not None for reference in held))
        return outputs

    monkeypatch.setattr(Predictor, "_answers", counted)
    ensemble.predict(torch.zeros(1, 1, 16, 16, 16), ("probability",))
    assert len(alive) == 5 and max(alive) <= 2


def test_single_network_is_loaded_by_index(tmp_path):
    members, together = make_members(tmp_path, 2)
    message = refusal("network-ambiguous", conresnet.load_network, together)
    assert "2 networks" in message and "0 to 1" in message
    refusal("network-not-found", conresnet.load_network, together, 2)
    expected = conresnet.load_network(members[1]).state_dict()
    found = conresnet.load_network(together, 1).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"input_channels": 2}, "system.networks[1].arguments.input_channels"),
        ({"outputs": 5}, "system.networks[1].arguments.outputs"),
        ({"residual_axis": "H"}, "system.networks[1].arguments.residual_axis"),
    ],
)
def test_incompatible_members_are_refused(change, field):
    document = ensemble_of(description(), 2)
    document["system"]["networks"][1]["arguments"].update(change)
    assert field in refusal("package-description", parse_description, document)


def test_models_show_prints_networks_and_model_card(tmp_path, capsys):
    package = make_members(tmp_path, 3)[1]
    assert main(["models", "show", str(package.path)]) == 0
    output = " ".join(capsys.readouterr().out.split())
    size = package.count_parameters("network_0.safetensors") / 1e6
    assert f"Networks 3 of conresnet, each {size:.2f} M parameters" in output and "System ensemble" in output
    assert "Model card" not in output
    files = {name: package.read_file(name) for name in package.description.files}
    carded = write_package(package.description, {**files, "MODEL_CARD.md": b"# A model\n"}, tmp_path / "carded")
    assert main(["models", "show", str(carded.path)]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert f"Model card {carded.path / 'MODEL_CARD.md'}" in output
