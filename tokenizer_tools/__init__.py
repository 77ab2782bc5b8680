"""Pure functions on tokenizers and tensors. This package imports nothing from langext, so it can be used without it."""
