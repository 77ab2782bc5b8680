"""Export an extended model to files that others can load: write, reload in a fresh process, compare, describe."""
