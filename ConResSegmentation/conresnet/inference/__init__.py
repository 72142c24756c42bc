"""From prepared images to results: windows, the sliding pass, label maps and devices."""
