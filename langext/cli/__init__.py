"""The commands of langext."""
