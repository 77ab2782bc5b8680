"""What a run, or several runs, came to. Everything here reads what stages wrote; stages never call it."""
