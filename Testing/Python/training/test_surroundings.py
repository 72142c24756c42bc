"""Couch, cushion and mask painted around the body in images whose air was removed."""

import numpy as np
import pytest
import torch

from conresnet_training.data import augmentation
from conresnet_training.data.augmentation import SampleChanges, body_of, paint_couch_and_mask
from conresnet_training.planning.plan import Augmentation

SPACING = (3.0, 4.5, 4.5)
AIR = (0.0, -2.0)


@pytest.fixture
def image() -> torch.Tensor:
    """A cylinder of tissue containing a trachea and a bone next to it, in air of one value; two channels."""
    h, w = np.mgrid[:32, :40]
    radius = np.hypot(h - 16, w - 20)
    plane = np.where(radius < 9, 1.0, 0.0)
    plane[np.hypot(h - 16, w - 20) < 2] = 0.0
    plane[np.hypot(h - 16, w - 25) < 2] = 4.0
    volume = np.repeat(plane[None], 24, axis=0) + 0.0
    tissue = volume > 0
    volume[tissue] += 0.05 * np.random.default_rng(0).standard_normal(int(tissue.sum()))
    return torch.from_numpy(np.stack([volume, 3 * volume + AIR[1]]).astype(np.float32))


def painted(image: torch.Tensor, count: int = 200) -> list[torch.Tensor]:
    return [paint_couch_and_mask(image, SPACING, np.random.default_rng(number)) for number in range(count)]


def test_body_is_unchanged_and_most_samples_change_outside(image):
    before, body = image.clone(), torch.from_numpy(body_of(image[0].numpy()))
    assert body[12, 16, 20] and not body[12, 2, 2]
    changed = painted(image)
    assert torch.equal(image, before)
    for found in changed:
        assert torch.equal(found[:, body], image[:, body])
        assert (found >= image).all() and torch.isfinite(found).all()
        assert (found.amax((1, 2, 3)) <= image.amax((1, 2, 3))).all()
    assert sum(not torch.equal(found, image) for found in changed) > 180


def test_both_channels_show_the_same_objects(image):
    """The channels are the same CT in two intensity ranges; here, the second is 3 times the first minus 2."""
    for found in painted(image, 40):
        unclipped = found[0] < image[0].amax() - 1e-3
        torch.testing.assert_close(found[1][unclipped], 3 * found[0][unclipped] + AIR[1], atol=1e-4, rtol=0)


def test_masks_follow_the_skin_and_couches_reach_the_sides(image, monkeypatch):
    body = body_of(image[0].numpy())
    rows = np.flatnonzero(body.any((0, 2)))
    monkeypatch.setattr(augmentation, "COUCH_SHARE", 0)
    for found in painted(image, 30):
        away = np.argwhere((found[0] != image[0]).numpy())
        distance = np.hypot(*(away[:, 1:] - [16, 20]).T) - 9
        assert distance.min() > -1 and distance.max() * 4.5 < 15 + 6 + 3 * 4.5
    monkeypatch.setattr(augmentation, "COUCH_SHARE", 1)
    monkeypatch.setattr(augmentation, "MASK_SHARE", 0)
    monkeypatch.setattr(augmentation, "ALONG_W_SHARE", 0)
    sides = set()
    for found in painted(image, 60):
        full = ((found[0] != image[0]) | torch.from_numpy(body)).numpy().all(axis=(0, 2))
        assert not full[rows[0] : rows[-1] + 1].all()
        sides |= {"low"} if full[: rows[0]].any() else set()
        sides |= {"high"} if full[rows[-1] + 1 :].any() else set()
    assert sides == {"low", "high"}


def test_images_with_real_air_or_hardly_any_air_are_unchanged(image):
    noisy = image + 0.1 * torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    inside = image[:, :, 12:20, 16:24].clone()
    inside[inside < 0.5] = 1.0
    empty = torch.zeros_like(image)
    for unchanged in (noisy, inside, empty):
        for number in range(10):
            assert paint_couch_and_mask(unchanged, SPACING, np.random.default_rng(number)) is unchanged


def test_share_of_painted_samples_follows_settings(image):
    still = {"brightness": 0, "contrast": 0, "noise": 0, "coarsening": 1}
    label = torch.zeros(image.shape[1:], dtype=torch.uint8)

    def changed(share: float) -> list[torch.Tensor]:
        changes = SampleChanges(Augmentation(**still, couch_and_mask=share), SPACING)
        return [changes.change_intensities(image, label, np.random.default_rng(number)) for number in range(200)]

    drawn = changed(0.25)
    assert 30 < sum(not torch.equal(found, image) for found in drawn) < 70
    assert all(torch.equal(one, other) for one, other in zip(drawn, changed(0.25), strict=True))
    assert all(torch.equal(found, image) for found in changed(0))
