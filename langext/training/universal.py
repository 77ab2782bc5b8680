"""Converts a checkpoint to DeepSpeed's universal form, in a process of its own.

    python -m langext.training.universal --input_folder A --output_folder B --inject_missing_state

The one rule: it is DeepSpeed's own converter, which loads nothing but what `pickles` allows.
"""

from langext.training import engine, pickles

pickles.restrict()  # not in `main`: the converter starts processes of its own, and these may import this file anew

if __name__ == "__main__":
    engine.convert_to_universal()
