"""langext extends a pretrained language model to a new language without losing the old one."""

__version__ = "0.1.0"
