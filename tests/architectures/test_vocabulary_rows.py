"""The rows of new tokens learn, those of the base do not, and what is saved of the vocabulary is the new rows."""

import pytest
import torch
from toy import FRENCH, make_base, make_tokenizer, sentences

from langext.architectures import vocabulary
from langext.methods import extended
from langext.methods.adapter import Adapter
from tokenizer_tools.byte_bpe import continue_merges, word_counts
from tokenizer_tools.byte_bpe import extended as with_tokens


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_learn_and_base_rows_stay(tied):
    base = make_tokenizer()
    words = word_counts(base.backend_tokenizer, sentences(FRENCH, 300, 9))
    found = continue_merges(base.backend_tokenizer, words, 7, 5)
    bigger = with_tokens(base, found)
    net = make_base("llama", 384, tied=tied).float()  # 64 rows of padding, as Qwen has them
    before = {name: value.clone() for name, value in net.named_parameters()}
    live = extended.build(net, bigger, Adapter(name="adapter", width=8), len(found))
    vocabulary.fill(net, {320 + k: list(token.base_ids) for k, token in enumerate(found)})
    rows = {id(each): each for each in (net.get_input_embeddings().new_weight, net.get_output_embeddings().new_weight)}
    assert len(rows) == (1 if tied else 2)  # tied, there is one set of rows for both, and they cannot drift apart
    text = next(line for line in sentences(FRENCH, 50, 3) if max(bigger(line).input_ids) >= 320)
    ids = torch.tensor([bigger(text).input_ids])
    learning = live.learning()
    assert {id(each) for each in learning.values()} >= rows.keys()
    started = {key: row.detach().clone() for key, row in rows.items()}
    net(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD(learning.values(), lr=1.0).step()
    assert all(not torch.equal(row, started[key]) for key, row in rows.items())
    after = dict(net.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    delta = live.delta()
    of_vocabulary = [value for value in delta.values() if value.shape[0] in (7, 320, 327, 384)]
    assert [tuple(value.shape) for value in of_vocabulary] == [(7, 64)] * len(rows)
