"""The parts of ConRes Training that use Slicer, one subject per file; the module file connects them."""
