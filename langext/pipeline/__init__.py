"""A pipeline file: planned, run stage by stage in processes of their own, reused, swept over settings."""
