"""Pages, tables and measures about the results of runs. This package reads what stages wrote; no stage calls it."""
