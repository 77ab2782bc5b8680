"""Training under DeepSpeed: settings, set-up, the loop, checkpoints, and what is measured on the way."""
