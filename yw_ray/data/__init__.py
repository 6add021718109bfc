"""Annotations, shards, plan and augmentation: everything up to a batch. No Ray, no model."""
