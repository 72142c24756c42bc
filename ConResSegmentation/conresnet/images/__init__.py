"""Images: reading and writing files, voxel grids, resampling, ROIs, checks, and bringing a case to a model."""
