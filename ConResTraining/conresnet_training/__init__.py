"""Training of ConResNet's networks outside Slicer: data, plan, loop and export, on MONAI and Lightning."""
