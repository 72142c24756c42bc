"""How far two grids are from each other, in words."""

import numpy as np

from conresnet.grid import Grid
from conresnet_training.words import product

# What is not worth a word: relative for spacings, in voxels for places, in degrees.
SAME_SPACING, SAME_PLACE, SAME_DEGREES = 1e-3, 0.01, 0.01


def grid_difference(grid: Grid, reference: Grid) -> str | None:
    """What differs between a grid and the one it should be; None where ``Grid.matches`` sees no difference.

    Names each that differs: size in voxels, spacing in mm, the first voxel's place in mm, the axes' directions in
    degrees and, for grids of one size, how far apart their voxels lie at the most.
    """
    if grid.matches(reference):
        return None
    parts = []
    if grid.shape != reference.shape:
        parts.append(f"{product(grid.shape[::-1], 6)} instead of {product(reference.shape[::-1], 6)} voxels")
    if not np.allclose(grid.spacing, reference.spacing, rtol=SAME_SPACING, atol=0):
        parts.append(f"spacing {product(grid.spacing, 6)} instead of {product(reference.spacing, 6)} mm")
    moved = float(np.linalg.norm(grid.affine[:3, 3] - reference.affine[:3, 3]))
    if moved > SAME_PLACE * reference.spacing.min():
        parts.append(f"first voxel {moved:.3g} mm away")
    cosines = np.clip((grid.direction * reference.direction).sum(axis=0), -1, 1)
    turned = float(np.degrees(np.arccos(cosines.min())))
    if turned > SAME_DEGREES:
        parts.append(f"axes turned by {turned:.3g} degrees")
    if grid.shape == reference.shape:
        apart = np.linalg.norm(grid.corners(0) - reference.corners(0), axis=1).max()
        parts.append(f"voxels up to {apart:.3g} mm apart")
    return ", ".join(parts)
