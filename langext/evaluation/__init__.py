"""What a model is worth: bits per byte, distance to the base, gates, tasks, text, and whether a change is more than noise."""
