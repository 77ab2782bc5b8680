"""Extended vocabularies in programs that serve models, compared with langext's own forward in float32: one table.

    python benchmarks/serving_vocabulary.py --runners transformers4,transformers5,vllm

Pico Llamas with the toy tokenizers of the tests: byte-level, and SentencePiece with the settings of Llama 2 and of Gemma, each
with 40 new tokens of French. Cells: the largest difference of a log-probability in nats, and how many tokens have the same most
likely next one. `tests/exports/test_gguf.py` does it for llama.cpp. Environments are those of `benchmarks/serving.py`.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import serving
import spm
from toy import ENGLISH, FRENCH, make_base, make_tokenizer, sentences

from langext.exports import checkpoint, runners, verify
from langext.methods import Full, extended
from langext.models import loading
from tokenizer_tools import extension, folder

NEW = 40
TEXTS = [*sentences(FRENCH, 3, 10), "the big cat sleeps, 123 forêt garçon", "le chat dort\n\nla 日本"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runners", default="transformers4,transformers5,vllm", help="comma list; name=PYTHON says where one is"
    )
    parser.add_argument("--environments", type=Path, help="folder of environments. Default: that of `langext fetch`")
    asked = parser.parse_args()
    programs = serving.interpreters(asked.runners, asked.environments)
    with tempfile.TemporaryDirectory(prefix="langext-vocabulary-") as scratch:
        made = [(name, export(name, Path(scratch) / name)) for name in ("byte-level", "llama2", "gemma")]
        serving.table(["vocabulary"], made, programs)


def export(name: str, root: Path) -> runners.Export:
    """A model with an extended vocabulary of a kind, and what langext computes with it."""
    source, out, logits, written = (root / part for part in ("base", "extended", "logits", "export"))
    for place in (logits, written):
        place.mkdir(parents=True)
    if name in spm.SETTINGS:
        spm.write(source, name)
    else:
        make_tokenizer().save_pretrained(source)
    base = folder.read(source)
    kind, backend = extension.kind_of(base, source, folder.read), base.backend_tokenizer
    words = kind.word_counts(backend, sentences(FRENCH, 100, 9))
    found = kind.learn(backend, words, NEW, 5)
    text = {"words": words, "texts": sentences(ENGLISH, 5, 2), "protected": {}}
    made = extension.write(out, source, kind, base, found, read=folder.read, **text).tokenizer
    torch.manual_seed(3)
    # Heads are 32 wide: vLLM's attention on CPUs takes no narrower ones.
    make_base("llama", len(made), num_attention_heads=2, num_key_value_heads=1).save_pretrained(out)
    net = loading.load_base(out, torch.float32)
    live = extended.build(net, made, Full(name="full"))
    checkpoint.save(live, live.methods[-1].fold(net), written)
    expected = verify.expect(net.eval(), made, TEXTS, logits)
    assert any(i >= len(base) for row in expected.ids for i in row)
    return runners.Export(written, expected, False)


if __name__ == "__main__":
    main()
