"""word2vec as matrix products: skip-gram and CBOW with negative sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from tensair_dask.text.samples import LENGTH, reach_of

__all__ = ["CBOW", "SkipGram", "WordVectors"]

# So many blocks share their negatives. All negatives of a step for all its words would
# be twice the work and no better: with 4 a block, 32 are enough for a word.
GROUP = 8

# The longest gradient of a negative. It is the sum over 256 words, which is where steps
# that are too large begin to grow out of all bounds; those that are not stay below.
LONGEST = 50.0

# The loss is measured on one in so many blocks: the logarithms would cost a tenth of a
# step, and gradients do not need them.
LOSS_BLOCKS = 16


class WordVectors(nn.Module):
    """Two tables, one of words and one of words as context, trained on `Samples`.

    All pairs of a block of 32 words are one matrix product under a band mask. The
    negatives of 8 blocks are shared by all their words, each weighted by what
    ``negatives`` of them for each pair would weigh. Every row is gathered once.

    The gradient is of the *sum* over pairs, as in the original program, so that the
    learning rate means the same whatever the size of a step. A step must not put too
    much on one frequent word: with 48 blocks a rate of 0.03 is stable.

    Parameters
    ----------
    rows
        Of each table: `Vocabulary.rows`.
    width
        Of the vectors.
    window
        The largest reach; that of the `Sampler`.
    negatives
        How many negatives for each pair the shared ones stand for.

    References
    ----------
    Mikolov et al., "Distributed representations of words and phrases and their
    compositionality", NIPS 2013. Shared negatives and products of matrices: Ji et
    al., "Parallelizing word2vec in shared and distributed memory", arXiv 1604.04661.
    """

    masks: torch.Tensor
    pairs: torch.Tensor

    def __init__(
        self, rows: int, width: int = 100, window: int = 5, negatives: int = 5
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(rows, width, sparse=True)
        self.contexts = nn.Embedding(rows, width, sparse=True)
        nn.init.uniform_(self.words.weight, -0.5 / width, 0.5 / width)
        nn.init.zeros_(self.contexts.weight)
        self.negatives = negatives
        place, left, right = reach_of(window)
        # For each code: which of the 32 words of its block are context.
        distance = torch.arange(LENGTH) - torch.from_numpy(place)[:, None]
        mask = (
            (distance >= -torch.from_numpy(left)[:, None])
            & (distance <= torch.from_numpy(right)[:, None])
            & (distance != 0)
        )
        self.register_buffer("masks", mask.float(), persistent=False)
        self.register_buffer("pairs", mask.sum(1).float(), persistent=False)

    def forward(
        self,
        words: torch.Tensor | None = None,
        reach: torch.Tensor | None = None,
        negatives: torch.Tensor | None = None,
        rate: torch.Tensor | None = None,
        vectors_of: torch.Tensor | None = None,
        similar_to: torch.Tensor | None = None,
    ) -> Any:
        """Train on samples, or answer: give one of the three.

        Parameters
        ----------
        words, reach, negatives
            Of `Samples`.
        rate
            By how much to multiply the learning rate, the same for all blocks of a
            step, (blocks,).
        vectors_of
            Rows of the table, (n,).
        similar_to
            Rows of the table, (n,).

        Returns
        -------
        loss
            In training, a scalar: the mean over some of the pairs (enough to see it
            fall). Its gradient is of the sum over all.
        answer
            Vectors, (n, width); or cosines with the vectors of all rows, (n, rows).
        """
        table = self.words.weight
        if vectors_of is not None:
            return table.index_select(0, vectors_of)
        if similar_to is not None:
            unit = nn.functional.normalize(table, dim=1)
            return unit.index_select(0, similar_to) @ unit.T
        assert words is not None
        assert reach is not None
        assert negatives is not None
        codes = reach.flatten().int()
        mask = self.masks.index_select(0, codes).view(-1, LENGTH, LENGTH)
        pairs = self.pairs.index_select(0, codes)[:, None]
        noise = negatives.flatten().long()
        groups = len(reach) // GROUP if len(reach) % GROUP == 0 else 1
        weight = self.negatives * groups / len(noise)
        scale = 1.0 if rate is None else float(rate[0])
        return _Step.apply(
            table,
            self.contexts.weight,
            words.flatten().long(),
            noise,
            lambda u, v, w: self.differentiate(
                u, v, w.view(groups, -1, w.shape[1]), mask, pairs, weight, scale
            ),
        )

    @staticmethod
    def differentiate(
        u: torch.Tensor,
        v: torch.Tensor,
        w: torch.Tensor,
        mask: torch.Tensor,
        pairs: torch.Tensor,
        weight: float,
        scale: float,
    ) -> Differentiated:
        """Compute the loss and its derivatives by all vectors of a step.

        Parameters
        ----------
        u, v
            Vectors of the n words, and of the same words as context, (n, width).
        w
            Vectors of the negatives as context, (groups, negatives, width).
        mask
            1 where a word of a block has another as context, (blocks, 32, 32).
        pairs
            How many it has, (n, 1).
        weight
            Of a negative, for each pair.
        scale
            Of the derivatives.
        """
        raise NotImplementedError


class SkipGram(WordVectors):
    """Each word predicts the words in its window."""

    @staticmethod
    def differentiate(
        u: torch.Tensor,
        v: torch.Tensor,
        w: torch.Tensor,
        mask: torch.Tensor,
        pairs: torch.Tensor,
        weight: float,
        scale: float,
    ) -> Differentiated:
        """See `WordVectors.differentiate`."""
        u_blocks, v_blocks, u_groups = _blocks(u), _blocks(v), _like(w, u)
        weights = _like(w, pairs * weight)
        seen = torch.bmm(u_blocks, v_blocks.mT)
        noisy = torch.bmm(u_groups, w.mT)
        loss = _mean_loss(seen, mask, noisy, weights)
        # Derivatives by the scores, in place of them.
        seen.sigmoid_().sub_(1).mul_(mask.mul_(scale))
        noisy.sigmoid_().mul_(weights.mul_(scale))
        by_u = torch.bmm(noisy, w).view_as(u)
        _blocks(by_u).baddbmm_(seen, v_blocks)
        by_v = torch.bmm(seen.mT, u_blocks).view_as(v)
        return Differentiated(
            loss, by_u, by_v, _shortened(torch.bmm(noisy.mT, u_groups))
        )


class CBOW(WordVectors):
    """The mean of the words in its window predicts each word."""

    @staticmethod
    def differentiate(
        u: torch.Tensor,
        v: torch.Tensor,
        w: torch.Tensor,
        mask: torch.Tensor,
        pairs: torch.Tensor,
        weight: float,
        scale: float,
    ) -> Differentiated:
        """See `WordVectors.differentiate`."""
        mean = mask / _blocks(pairs.clamp(min=1))
        known = (pairs > 0).to(u.dtype)
        h = torch.bmm(mean, _blocks(u)).view_as(u)
        h_groups = _like(w, h)
        weights = _like(w, known * weight)
        seen = (h * v).sum(1, keepdim=True)
        noisy = torch.bmm(h_groups, w.mT)
        loss = _mean_loss(_blocks(seen), _blocks(known), noisy, weights)
        seen.sigmoid_().sub_(1).mul_(known.mul_(scale))
        noisy.sigmoid_().mul_(weights.mul_(scale))
        by_h = torch.bmm(noisy, w).view_as(h).addcmul_(seen, v)
        by_u = torch.bmm(mean.mT, _blocks(by_h)).view_as(u)
        return Differentiated(
            loss, by_u, seen * h, _shortened(torch.bmm(noisy.mT, h_groups))
        )


class Differentiated(NamedTuple):
    """The mean loss over some pairs, and derivatives of the sum over all."""

    loss: torch.Tensor
    by_u: torch.Tensor
    by_v: torch.Tensor
    by_w: torch.Tensor


class _Step(torch.autograd.Function):
    """Loss and gradient in one go: the gradient reuses what the loss computed."""

    @staticmethod
    def forward(
        ctx: Any,
        table: torch.Tensor,
        contexts: torch.Tensor,
        words: torch.Tensor,
        noise: torch.Tensor,
        differentiate: Callable[..., Differentiated],
    ) -> torch.Tensor:
        # index_select takes a third of the time that indexing takes.
        found = differentiate(
            table.index_select(0, words),
            contexts.index_select(0, words),
            contexts.index_select(0, noise),
        )
        ctx.shape = table.shape
        ctx.ids = words, torch.cat([words, noise])
        ctx.values = found.by_u, torch.cat([found.by_v, found.by_w.flatten(0, 1)])
        return found.loss

    @staticmethod
    def backward(ctx: Any, by_loss: torch.Tensor) -> Any:
        factor = float(by_loss)
        gradients = []
        for ids, values in zip(ctx.ids, ctx.values, strict=True):
            if factor != 1.0:
                values.mul_(factor)
            gradients.append(
                torch.sparse_coo_tensor(
                    ids[None], values, ctx.shape, check_invariants=False
                )
            )
        return (*gradients, None, None, None)


def _blocks(rows: torch.Tensor) -> torch.Tensor:
    return rows.view(-1, LENGTH, rows.shape[1])


def _like(w: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Divide rows into as many groups as the negatives have."""
    return rows.view(len(w), -1, rows.shape[1])


def _shortened(by_w: torch.Tensor) -> torch.Tensor:
    lengths = torch.linalg.vector_norm(by_w, dim=2, keepdim=True)
    return by_w.mul_((LONGEST / lengths).clamp_(max=1))


def _mean_loss(
    seen: torch.Tensor, mask: torch.Tensor, noisy: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Mean over the pairs of the first blocks."""
    words = min(-(-len(seen) // LOSS_BLOCKS) * LENGTH, noisy.shape[1])
    blocks = words // LENGTH
    log = nn.functional.logsigmoid
    part, weights = mask[:blocks], weights[0, :words]
    positive = torch.dot(log(seen[:blocks]).flatten(), part.flatten())
    negative = torch.mv(log(-noisy[0, :words]).T, weights.flatten()).sum()
    return (positive + negative) / part.sum().clamp(min=1).neg()
