"""The commands of ``python -m conresnet_training``, a module each; they import what they need when they run, so that
``--help`` does not wait for torch.
"""
