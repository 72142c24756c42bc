"""The commands of ``python -m conresnet``, one file each; `conresnet.cli.main` loads one when it is called."""
