"""Learning a vocabulary, ours against the trainer of the tokenizers library, on the same text, in processes of their own.

    python benchmarks/vocabulary_speed.py BASE TEXT.jsonl.gz ... --megabytes 5

More megabytes than the texts have are made of them: in every further round one word in `CHANGED` is joined from two, so that
words which were never seen go on to appear, as they do in real text.

`ours` counts the words of the text as the base divides it and continues the base's merges; `theirs` is BpeTrainer, which
divides the text in the same way and learns as many merges from single bytes. Reported are wall time, CPU
time of all cores (what others on the machine disturb less) and the peak of memory; text is read as it is needed, not held.
"""

import argparse
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

CHANGED = 50
"""In every round after the first, one word of so many is joined from two."""
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tokenizers import Tokenizer, models, trainers
from transformers import AutoTokenizer

from tokenizer_tools import texts
from tokenizer_tools.byte_bpe import BYTES, continue_merges, word_counts


def pieces(files, megabytes):
    """Documents of about 4 kB, until there are so many megabytes."""
    used, dice = 0, random.Random(0)
    for number in itertools.count():
        for path in files:
            for text in texts.read(Path(path)):
                for start in range(0, len(text), 4000):
                    piece = changed(text[start : start + 4000], dice) if number else text[start : start + 4000]
                    used += len(piece.encode())
                    yield piece
                    if used >= megabytes * 1e6:
                        return


def changed(text, dice):
    """The text with one word in `CHANGED` joined from the halves of two neighbours."""
    found = text.split(" ")
    for at in dice.sample(range(1, len(found)), len(found) // CHANGED) if len(found) > 1 else ():
        left, right = found[at - 1], found[at]
        found[at] = left[: (len(left) + 1) // 2] + right[len(right) // 2 :]
    return " ".join(found)


def ours(base, text, number):
    began = time.perf_counter()
    words = word_counts(base.backend_tokenizer, text, thin=True)
    counted = time.perf_counter() - began
    found = continue_merges(base.backend_tokenizer, words, number, 2)
    return {"tokens": len(found), "words": len(words), "counting_seconds": counted}


def theirs(base, text, number):
    learner = Tokenizer(models.BPE())
    learner.normalizer, learner.pre_tokenizer = base.backend_tokenizer.normalizer, base.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=256 + number, min_frequency=2, initial_alphabet=list(BYTES), show_progress=False, special_tokens=[]
    )
    learner.train_from_iterator(text, trainer)
    return {"tokens": learner.get_vocab_size() - 256}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("text", nargs="+")
    parser.add_argument("--megabytes", type=float, default=5)
    parser.add_argument("--new-tokens", type=int, default=8000)
    parser.add_argument("--alone", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        base = AutoTokenizer.from_pretrained(given.base)
        # Counted from here: what loading a tokenizer takes is neither's.
        began, used = time.perf_counter(), time.process_time()
        run = {"ours": ours, "theirs": theirs}[given.alone]
        found = run(base, pieces(given.text, given.megabytes), given.new_tokens)
        found |= {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - used}
        print(json.dumps(found | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}))
        return
    both = {}
    for way in ("ours", "theirs"):
        command = [sys.executable, __file__, given.base, *given.text, "--alone", way]
        command += ["--megabytes", str(given.megabytes), "--new-tokens", str(given.new_tokens)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        both[way] = json.loads(done.stdout)
        print(way, json.dumps(both[way]))
    for what in ("seconds", "cpu_seconds", "peak_mb"):
        print(f"{what}: ours is {both['ours'][what] / both['theirs'][what]:.2f} x theirs")


if __name__ == "__main__":
    main()
