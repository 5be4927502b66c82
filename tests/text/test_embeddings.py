from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, logsigmoid

from tensair_dask.text.embeddings import CBOW, LONGEST, SkipGram, WordVectors
from tensair_dask.text.samples import LENGTH, reach_code

ROWS, WIDTH, WINDOW = 60, 6, 3
MODELS = pytest.mark.parametrize("model", [SkipGram, CBOW])


class Data(NamedTuple):
    """What a step is made with, and the context that the codes stand for."""

    words: torch.Tensor
    reach: torch.Tensor
    negatives: torch.Tensor
    context: list[list[list[int]]]  # block, place: places of its context


def data(blocks: int, negatives: int = 4, seed: int = 0) -> Data:
    random = np.random.default_rng(seed)
    shape = (blocks, LENGTH)
    place = np.broadcast_to(np.arange(LENGTH), shape)
    left = np.minimum(random.integers(0, WINDOW + 1, shape), place)
    right = np.minimum(random.integers(0, WINDOW + 1, shape), LENGTH - 1 - place)
    context = [
        [
            [n for n in range(at - left[b, at], at + right[b, at] + 1) if n != at]
            for at in range(LENGTH)
        ]
        for b in range(blocks)
    ]
    return Data(
        torch.from_numpy(random.integers(1, ROWS, shape, np.int32)),
        torch.from_numpy(reach_code(place, left, right, WINDOW)),
        torch.from_numpy(random.integers(1, ROWS, (blocks, negatives), np.int32)),
        context,
    )


def built(model: type[WordVectors], size: float = 0.5, seed: int = 0) -> WordVectors:
    """Of doubles, with vectors that are neither zero nor alike."""
    ours = model(ROWS, WIDTH, WINDOW, negatives=5).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for table in ours.parameters():
            table.normal_(0, size, generator=generator)
    return ours


def run_step(ours: WordVectors, given: Data, **more: Any) -> torch.Tensor:
    return ours(words=given.words, reach=given.reach, negatives=given.negatives, **more)


def naive(ours: WordVectors, given: Data) -> tuple[torch.Tensor, int]:
    """The loss of all pairs, one pair after another, and how many there are."""
    tables = ours.words.weight, ours.contexts.weight
    u_of, v_of = (table.index_select for table in tables)
    total, pairs = torch.zeros((), dtype=torch.double), 0
    blocks = len(given.words)
    together = 8 if blocks % 8 == 0 else blocks  # share their negatives
    for block in range(blocks):
        start = block - block % together
        drawn = given.negatives[start : start + together].flatten()
        noise = v_of(0, drawn)
        weight = ours.negatives / len(drawn)
        u, v = (rows_of(0, given.words[block]) for rows_of in (u_of, v_of))
        for at, context in enumerate(given.context[block]):
            if isinstance(ours, CBOW) and context:
                mean = u[context].mean(0)
                total = total - logsigmoid(mean @ v[at])
                total = total - weight * logsigmoid(-noise @ mean).sum()
                pairs += 1
            elif isinstance(ours, SkipGram):
                for other in context:
                    total = total - logsigmoid(u[at] @ v[other])
                    total = total - weight * logsigmoid(-noise @ u[at]).sum()
                    pairs += 1
    return total, pairs


def gradients(ours: WordVectors, loss: torch.Tensor) -> list[torch.Tensor]:
    return [
        found.to_dense() if found.is_sparse else found
        for found in torch.autograd.grad(loss, list(ours.parameters()))
    ]


# ----------------------------------------------------------------------- gradients


@MODELS
@pytest.mark.parametrize("blocks", [1, 3, 8, 12, 16])
def test_the_gradient_is_that_of_a_loop_over_pairs(model, blocks):
    ours, given = built(model), data(blocks)
    total, _ = naive(ours, given)
    expected = gradients(ours, total)
    found = gradients(ours, run_step(ours, given))
    for mine, theirs in zip(found, expected, strict=True):
        assert theirs.abs().max() > 0.1
        assert torch.allclose(mine, theirs, atol=1e-9)


@MODELS
def test_single_precision_gives_the_same_gradient(model):
    ours, given = built(model), data(8)
    expected = gradients(ours, naive(ours, given)[0])
    found = gradients(ours.float(), run_step(ours, given))
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine.double(), theirs, atol=1e-4)


@MODELS
def test_a_new_model_has_a_gradient(model):
    torch.manual_seed(0)
    ours, given = model(ROWS, WIDTH, WINDOW).double(), data(2)
    expected = gradients(ours, naive(ours, given)[0])
    for mine, theirs in zip(
        gradients(ours, run_step(ours, given)), expected, strict=True
    ):
        assert torch.allclose(mine, theirs, atol=1e-9)
    assert expected[1].abs().max() > 0.1  # the words' own is zero at first


@MODELS
def test_gradients_are_rows_of_what_was_in_the_step(model):
    ours, given = built(model), data(2)
    run_step(ours, given).backward()
    words, contexts = ours.words.weight.grad, ours.contexts.weight.grad
    assert words.is_sparse
    assert contexts.is_sparse
    assert words.shape == contexts.shape == (ROWS, WIDTH)
    seen = set(given.words.flatten().tolist())
    noise = set(given.negatives.flatten().tolist())
    assert set(words._indices()[0].tolist()) == seen
    assert set(contexts._indices()[0].tolist()) == seen | noise


@MODELS
@pytest.mark.parametrize("rate", [0.25, 2.0, 0.0])
def test_the_rate_scales_the_gradient_and_not_the_loss(model, rate):
    ours, given = built(model), data(8)
    plain = run_step(ours, given)
    scaled = run_step(ours, given, rate=torch.full((8,), rate))
    assert scaled.item() == plain.item()
    for mine, theirs in zip(
        gradients(ours, scaled), gradients(ours, plain), strict=True
    ):
        assert torch.allclose(mine, rate * theirs)


@MODELS
def test_a_factor_of_the_loss_scales_the_gradient(model):
    ours, given = built(model), data(2)
    plain = gradients(ours, run_step(ours, given))
    for mine, theirs in zip(
        gradients(ours, 3 * run_step(ours, given)), plain, strict=True
    ):
        assert torch.allclose(mine, 3 * theirs)


@MODELS
def test_a_step_does_not_change_what_it_is_given(model):
    ours, given = built(model), data(8)
    tables = [*ours.state_dict().values(), ours.masks, ours.pairs]
    before = [one.clone() for one in (*given[:3], *tables)]
    run_step(ours, given, rate=torch.full((8,), 0.1)).backward()
    for was, now in zip(before, (*given[:3], *tables), strict=True):
        assert torch.equal(was, now)


# ------------------------------------------------------------------------ the clip


def apart() -> Data:
    """Negatives that are no words of the step, so that their gradient is their own."""
    given = data(8)
    words = given.words % 40 + 1
    negatives = torch.arange(41, 57, dtype=torch.int32).view(8, 2)
    return given._replace(words=words, negatives=negatives)


@MODELS
@pytest.mark.parametrize("size", [0.1, 2.0], ids=["short", "long"])
def test_the_gradient_of_a_negative_has_no_more_than_the_longest_length(model, size):
    ours, given = built(model, size), apart()
    expected = gradients(ours, naive(ours, given)[0])
    found = gradients(ours, run_step(ours, given))
    lengths = expected[1][41:57].norm(dim=1)
    cut = expected[1].clone()
    cut[41:57] *= (LONGEST / lengths).clamp(max=1)[:, None]
    assert (lengths.max() > LONGEST) == (size == 2.0)
    assert torch.allclose(found[1], cut, atol=1e-9)
    assert torch.allclose(found[0], expected[0], atol=1e-9)  # of words: as it is


# ------------------------------------------------------------------------ the loss


@MODELS
@pytest.mark.parametrize("blocks", [1, 3, 8])
def test_the_loss_is_the_mean_over_the_pairs_of_the_first_block(model, blocks):
    ours, given = built(model), data(blocks)
    # Its words are compared with the negatives of all blocks that share them.
    first = given._replace(context=[given.context[0], *[[[]] * LENGTH] * (blocks - 1)])
    total, pairs = naive(ours, first)
    assert run_step(ours, given).item() == pytest.approx((total / pairs).item())


@MODELS
@pytest.mark.parametrize("blocks", [16, 40, 160])
def test_the_loss_is_about_the_mean_over_all_pairs(model, blocks):
    ours, given = built(model, size=0.3), data(blocks)
    total, pairs = naive(ours, given)
    mean = (total / pairs).item()
    assert run_step(ours, given).item() == pytest.approx(mean, rel=0.1)


@MODELS
def test_the_loss_of_a_new_model_is_that_of_a_coin(model):
    ours, given = model(ROWS, WIDTH, WINDOW, negatives=5), data(16)
    assert run_step(ours, given).item() == pytest.approx(6 * np.log(2), rel=1e-3)


@MODELS
def test_the_loss_falls_in_training(model):
    torch.manual_seed(0)
    ours, given = model(ROWS, WIDTH, WINDOW), data(8)
    stepper = torch.optim.SGD(ours.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        stepper.zero_grad()
        loss = run_step(ours, given)
        loss.backward()
        stepper.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


# ------------------------------------------------------------------------- padding


@MODELS
@pytest.mark.parametrize("blocks", [1, 8])
def test_a_padded_block_gives_no_gradient(model, blocks):
    ours, given = built(model), data(blocks)
    nothing = torch.from_numpy(reach_code(*np.indices((1, LENGTH))[1:], 0, 0, WINDOW))
    loss = ours(
        words=torch.zeros_like(given.words),
        reach=nothing.expand(blocks, LENGTH),
        negatives=given.negatives,
    )
    assert loss.item() == 0
    for found in gradients(ours, loss):
        assert not found.any()


@MODELS
def test_the_padded_end_of_a_block_gives_no_gradient(model):
    ours, given = built(model), data(1)
    words, reach = given.words.clone(), given.reach.clone()
    words[0, 20:] = 0
    context = [[n for n in some if n < 20] for some in given.context[0][:20]]
    for at in range(LENGTH):
        some = context[at] if at < 20 else []
        left, right = sum(n < at for n in some), sum(n > at for n in some)
        reach[0, at] = int(
            reach_code(np.array(at), np.array(left), np.array(right), WINDOW)
        )
    padded = given._replace(
        words=words, reach=reach, context=[context + [[]] * (LENGTH - 20)]
    )
    found = gradients(ours, run_step(ours, padded))
    expected = gradients(ours, naive(ours, padded)[0])
    for mine, theirs in zip(found, expected, strict=True):
        assert not mine[0].any()
        assert torch.allclose(mine, theirs, atol=1e-9)


# ------------------------------------------------------------------------- answers


@MODELS
def test_vectors_of_rows_are_given(model):
    ours = built(model).eval()
    rows = torch.tensor([7, 1, 7])
    with torch.no_grad():
        answer = ours(vectors_of=rows)
    assert torch.equal(answer, ours.words.weight[rows])


@MODELS
def test_cosines_with_all_rows_are_given(model):
    ours = built(model).eval()
    rows = torch.tensor([7, 1])
    with torch.no_grad():
        answer = ours(similar_to=rows)
        table = ours.words.weight
        expected = cosine_similarity(table[rows][:, None], table[None], dim=2)
    assert answer.shape == (2, ROWS)
    assert torch.allclose(answer, expected)
    assert answer[0].argmax() == 7


def test_a_row_of_zeros_is_similar_to_nothing():
    ours = built(SkipGram).eval()
    with torch.no_grad():
        ours.words.weight[4] = 0
        answer = ours(similar_to=torch.tensor([4]))
    assert not answer.any()


@MODELS
def test_a_step_can_be_scored_without_learning(model):
    ours, given = built(model), data(2)
    training = run_step(ours, given).item()
    with torch.no_grad():
        loss = run_step(ours.eval(), given)
    assert loss.item() == training
    assert not loss.requires_grad


@pytest.mark.parametrize("window", [1, 31])
def test_all_of_the_context_that_a_code_stands_for_is_in_its_mask(window):
    ours = SkipGram(4, 2, window)
    place, left, right = 16, min(window, 16), min(window, 15)
    code = int(reach_code(np.array(place), np.array(left), np.array(right), window))
    context = [n for n in range(place - left, place + right + 1) if n != place]
    assert ours.masks[code].nonzero().flatten().tolist() == context
    assert ours.pairs[code] == len(context)
