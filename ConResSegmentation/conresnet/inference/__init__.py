"""From prepared images to results: windows, the sliding pass, label maps, devices and progress."""
