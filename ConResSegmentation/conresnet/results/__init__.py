"""What is made of a segmentation: its folder, measurements, review list, pictures and report."""
