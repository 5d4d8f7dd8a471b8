"""Masked language modelling of token sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scdataloader.batches.tokens.tables import ModelTable
from scdataloader.kernels.tokens.masks import mask_tokens
from scdataloader.types import CellBatch


@dataclass(frozen=True)
class MaskedTokens:
    """Mask tokens at random, as BERT does (Devlin et al., NAACL 2019); the model learns to restore them.

    Every place of a gene is masked with probability ``rate``, each independently. Special tokens and padding never are;
    the collator of Geneformer's repository masks ``<cls>`` and ``<eos>`` too. The choices depend on the seed, the
    epoch, the cell's position in it and the place in the sequence only.

    Args:
        rate: Probability that a place is masked.
        mask: Of the masked places, the share that becomes the mask token.
        random: The share that becomes a random token, uniform over the model's whole dictionary, special tokens
            included, as in the original. The others keep their token.
    """

    rate: float = 0.15
    mask: float = 0.8
    random: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate of MaskedTokens must be above 0 and at most 1, not {self.rate}")
        if min(self.mask, self.random) < 0 or self.mask + self.random > 1:
            raise ValueError(
                f"mask and random of MaskedTokens are shares with a sum of at most 1, not {self.mask} and {self.random}"
            )

    @property
    def rates(self) -> tuple[float, float, float]:
        """``rate``, ``mask`` and ``random``."""
        return float(self.rate), float(self.mask), float(self.random)

    def of(self, tokens: ModelTable, mask: str = "<mask>") -> Masking:
        """The masking of sequences of a dictionary, which has the token ``mask``.

        Raises:
            KeyError: the dictionary lacks it.
        """
        dictionary = np.unique(np.fromiter(map(int, tokens.values.values()), np.int64))
        return Masking(
            rates=self.rates,
            mask=tokens.special(mask)[0],
            dictionary=dictionary,
        )


@dataclass(frozen=True, kw_only=True)
class Masking:
    """`MaskedTokens` for the dictionary of a model."""

    rates: tuple[float, float, float]
    """``rate``, ``mask`` and ``random``."""
    mask: int
    """The mask token."""
    dictionary: NDArray[np.int64]
    """Tokens of which random ones are drawn."""

    def apply(
        self, ids: NDArray[np.int64], first: int, counts: NDArray[np.int64], cells: CellBatch, labels: NDArray[np.int64]
    ) -> None:
        """Mask tokens in place, and write the labels of a loss.

        Args:
            ids: ``(B, L)`` tokens.
            first: The place of the first gene in each row.
            counts: ``(B,)`` number of genes of each row.
            cells: The cells.
            labels: ``(B, L)`` for the original token of the masked places, and -100 elsewhere.
        """
        key = np.uint64(cells.key)
        mask_tokens(ids, first, counts, key, cells.position, self.rates, self.mask, self.dictionary, labels)
