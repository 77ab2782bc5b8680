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


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("slots", [[], [3, 17, 18]])
def test_new_rows_stand_in_the_places_of_reserved_tokens_and_behind_the_others(tied, slots):
    """Against a stock model whose matrices are written by hand; of the rows of padding, those that are not taken over stay."""
    new_ids = [*slots, 320, 321]
    net, stock = (make_base("llama", 326, tied=tied).float().eval() for _ in range(2))
    stock.load_state_dict(net.state_dict())
    assert vocabulary.places(reversed(new_ids), 322) == (320, slots)
    vocabulary.extend(net, 320, len(new_ids), slots)
    rows = {name: torch.randn(len(new_ids), 64) for name in vocabulary.new_rows(net)}
    vocabulary.put(net, rows)
    before = net.get_input_embeddings().weight.clone()
    for name, module in (("input", stock.get_input_embeddings()), ("output", stock.get_output_embeddings())):
        if name in rows:
            module.weight.data[new_ids] = rows[name]
    ids = torch.tensor([[*new_ids, 0, 19, 319, 5, 325]])
    assert torch.equal(net(input_ids=ids).logits, stock(input_ids=ids).logits)
    whole = [matrix for matrix in vocabulary.matrices(net) if matrix is not None]
    assert len(whole) == (1 if tied else 2) and torch.equal(whole[0], stock.get_input_embeddings().weight)
    assert net.config.vocab_size == 326 and torch.equal(before, net.get_input_embeddings().weight)
    net(input_ids=ids, labels=ids).loss.backward()
    assert all((p.grad != 0).any(1).all() for name, p in net.named_parameters() if name.endswith(vocabulary.NEW_ROWS))
