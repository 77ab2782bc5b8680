"""Pure functions on tokenizers and tensors. Imports nothing from langext, so it is useful by itself."""
