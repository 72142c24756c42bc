"""Run folders: their plan and fold, progress, checkpoints, cross-validation, export."""
