"""The commands of ``python -m conresnet_training``, one module each. Each imports what it needs when it runs, so that
``--help`` is quick.
"""
