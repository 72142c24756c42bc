"""Results of a segmentation: the folder, measurements, review list, pictures and report."""
