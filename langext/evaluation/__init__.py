"""Measure models: bits per byte, distance to the base, gates, tasks, written text, and whether a change is significant."""
