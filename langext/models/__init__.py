"""Base models and extended ones: found, loaded, and worked on as a whole after training."""
