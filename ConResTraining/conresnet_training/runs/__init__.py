"""Run folders: plan and fold, progress, checkpoints, cross-validation, export."""
