"""Sliding-window inference: windows, the pass over a case, results, devices, progress."""
