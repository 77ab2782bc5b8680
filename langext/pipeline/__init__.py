"""Reads a pipeline file, plans it, runs it stage by stage in separate processes, reuses stages, and sweeps over settings."""
