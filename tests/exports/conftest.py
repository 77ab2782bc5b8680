"""The methods' settings for pico models are shared with tests/methods."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "methods"))
