from __future__ import annotations

import torch
from torch import nn

from tensair_dask.exchange.rows import Rows, sum_rows


def test_values_of_equal_ids_are_summed():
    rows = Rows.summed(
        torch.tensor([4, 1, 4]), torch.tensor([[1.0, 1], [2, 2], [3, 3]])
    )
    assert rows.ids.tolist() == [1, 4]
    assert rows.values.tolist() == [[2, 2], [4, 4]]


def test_the_rows_of_an_embedding_are_its_dense_gradient():
    sparse = nn.Embedding(9, 3, sparse=True, padding_idx=0)
    dense = nn.Embedding(9, 3, padding_idx=0)
    dense.load_state_dict(sparse.state_dict())
    ids = torch.tensor([[0, 3, 3], [5, 0, 8]])
    sparse(ids).square().sum().backward()
    dense(ids).square().sum().backward()
    gradient = sparse.weight.grad
    rows = Rows.summed(gradient._indices()[0], gradient._values())
    assert 0 not in rows.ids
    assert torch.allclose(rows.gradient(sparse.weight).to_dense(), dense.weight.grad)


def test_a_sum_of_rows_is_the_sum_of_their_gradients():
    table = torch.zeros(6, 2)
    one = Rows(torch.tensor([0, 3]), torch.ones(2, 2))
    two = Rows(torch.tensor([3, 5]), torch.full((2, 2), 2.0))
    total = sum_rows([one, two]).gradient(table).to_dense()
    assert torch.equal(
        total, one.gradient(table).to_dense() + two.gradient(table).to_dense()
    )


def test_no_rows_at_all_are_allowed():
    none = Rows.summed(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    assert len(none) == 0
    assert torch.equal(none.gradient(torch.ones(3, 4)).to_dense(), torch.zeros(3, 4))
