"""From an extended model to files that others load: written, loaded again in a fresh process, compared, described."""
