"""Text for training: read it, filter it by language, split it, tokenise it, mix it; and download small assets."""
