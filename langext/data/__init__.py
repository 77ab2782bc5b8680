"""Text: read, told apart by language, split, turned into tokens, mixed; and the assets that carry it to a machine."""
