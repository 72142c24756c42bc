"""What ConRes Training needs of Slicer, one subject a file; the module file binds them together."""
