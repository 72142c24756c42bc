"""The parts of ConRes Segmentation that use Slicer, one subject per file; the module file connects them."""
