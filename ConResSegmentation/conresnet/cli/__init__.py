"""The commands of ``python -m conresnet``; `conresnet.cli.main` loads the file of one when it is called."""
