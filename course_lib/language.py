"""A language model small enough to train in seconds, and a text whose entropy is known exactly.

The text is drawn from a short list of sentence patterns, so the probability of every sentence is known, and the fewest bits
per character that any model can need. The model has the parts of large ones. Book: chapter 3, "A text whose entropy we know".
"""
import functools
import itertools
import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from . import intervals
from .data import Split
from .models import remembers_its_architecture
from .training import evaluating

__all__ = ["ALPHABET", "Attention", "BUILDERS", "Block", "Decoder", "bits_per_character", "bits_per_sentence", "decoder",
           "encode", "entropy", "generate", "information", "mean_length", "next_character_loss", "sample_sentences", "sentences"]

BUILDERS = {}
END = 0                 # the token before the first and behind the last character of a sentence
ALPHABET = "\n abcdefghijklmnopqrstuvwxyz."         # a character's token is its place in here

_NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty""".split() + [f"twenty {unit}" for unit in ("one", "two", "three", "four")]
_DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
_MONTHS = "january february march april may june july august september october november december".split()
_LOOKS = "big small old young happy clever quiet hungry".split()
_ANIMALS = "cat dog horse bird fox mouse sheep goat".split()
_DEEDS = "sees hears follows likes helps finds".split()


def _patterns():
    """Probability of each pattern, and all sentences that it makes, each as likely as the others."""
    yield 0.25, [f"{_NUMBERS[a]} plus {_NUMBERS[b]} is {_NUMBERS[a + b]}." for a in range(13) for b in range(13)]
    yield 0.25, [f"{_DAYS[d]} plus {_NUMBERS[n]} is {_DAYS[(d + n) % 7]}." for d in range(7) for n in range(13)]
    yield 0.125, [f"{word} {_MONTHS[m]} comes {_MONTHS[(m + step) % 12]}."
                  for word, step in (("before", -1), ("after", 1)) for m in range(12)]
    yield 0.375, ["the {} {} {} the {}.".format(*words) for words in itertools.product(_LOOKS, _ANIMALS, _DEEDS, _ANIMALS)]


@functools.cache
def sentences() -> dict[str, float]:
    """Every sentence of the language with its probability. Do not change the dictionary: all calls share it."""
    return {text: share / len(texts) for share, texts in _patterns() for text in texts}


def entropy() -> float:
    """Bits that one sentence carries on average: H = −Σ p log₂ p. No model needs fewer. Source: Shannon 1948."""
    return math.fsum(-p * math.log2(p) for p in sentences().values())


def mean_length() -> float:
    """Characters of a sentence on average, the end of the sentence included."""
    return math.fsum(p * (len(text) + 1) for text, p in sentences().items())


def information(texts: list[str]) -> torch.Tensor:
    """−log₂ p of each sentence, float64 of shape (n,): the bits that a model which knows the grammar needs.

    Raises: ValueError for a sentence that is not in the language.
    """
    known = sentences()
    if unknown := [text for text in texts if text not in known]:
        raise ValueError(f"not in the language: {unknown[0]!r}")
    return torch.tensor([-math.log2(known[text]) for text in texts], dtype=torch.float64)


def sample_sentences(n: int, *, seed: int = 0) -> list[str]:
    """Draw `n` sentences, each independent of the others."""
    texts, weights = list(sentences()), torch.tensor(list(sentences().values()), dtype=torch.float64)
    picks = torch.multinomial(weights, n, replacement=True, generator=torch.Generator().manual_seed(seed))
    return [texts[i] for i in picks.tolist()]


def encode(texts: list[str]) -> Split:
    """Sentences as tokens, to train and to judge a model on.

    Returns: `images`, int64 of shape (n, length): END, then the characters; `labels`: the token that comes after each
             of these, the last one END, and −1 behind it, where a short sentence is filled up.
    Raises:  ValueError for an empty list, or a character that is not in the alphabet.
    """
    if not texts:
        raise ValueError("need at least one sentence")
    if unknown := set("".join(texts)) - set(ALPHABET[1:]):
        raise ValueError(f"no token for {sorted(unknown)}; the alphabet is {ALPHABET!r}")
    rows = [torch.tensor([ALPHABET.index(character) for character in f"\n{text}\n"]) for text in texts]
    return Split(pad_sequence([row[:-1] for row in rows], batch_first=True, padding_value=END),
                 pad_sequence([row[1:] for row in rows], batch_first=True, padding_value=-1))


class Attention(nn.Module):
    """Each place gathers from the places before it, in `heads` ways at once: softmax(Q Kᵀ / √d + mask) V.

    Source: Vaswani et al. 2017, section 3.2. Equals: torch's scaled_dot_product_attention, causal.
    """

    def __init__(self, width: int, heads: int, context: int):
        super().__init__()
        self.heads = heads
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        # Minus infinity where a place would look ahead. It follows from the sizes, so it is not saved.
        self.register_buffer("mask", torch.full((context, context), -math.inf).triu(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Places (n, length, width) to the same shape."""
        n, length, width = x.shape
        parts = self.query_key_value(x).view(n, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)                # each (n, heads, length, d)
        scores = query @ key.transpose(2, 3) / math.sqrt(width // self.heads)
        weights = torch.softmax(scores + self.mask[:length, :length], dim=3)
        return self.out((weights @ value).transpose(1, 2).reshape(n, length, width))


class Block(nn.Module):
    """Attention, then a feed-forward layer; each is normalised before and added to what was there.

    Source: Radford et al. 2019 (GPT-2), section 2.3.
    """

    def __init__(self, width: int, heads: int, context: int):
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), Attention(width, heads, context)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Places (n, length, width) to the same shape."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class Decoder(nn.Module):
    """Tokens (n, length) to logits (n, length, tokens): which token comes after each. Made by `decoder`."""

    def __init__(self, tokens: int, context: int, width: int, depth: int, heads: int):
        super().__init__()
        self.token, self.place = nn.Embedding(tokens, width), nn.Parameter(0.1 * torch.randn(context, width))
        nn.init.normal_(self.token.weight, std=0.1)
        self.blocks = nn.Sequential(*[Block(width, heads, context) for _ in range(depth)])
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, tokens)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens to logits; see the class."""
        if x.dim() != 2 or x.shape[1] > len(self.place):
            raise ValueError(f"need tokens of shape (n, up to {len(self.place)}); got {tuple(x.shape)}")
        return self.output(self.norm(self.blocks(self.token(x) + self.place[:x.shape[1]])))


@remembers_its_architecture
def decoder(tokens: int = len(ALPHABET), context: int = 40, width: int = 64, depth: int = 2, heads: int = 4) -> nn.Module:
    """A decoder-only transformer with learned places; the output has weights of its own, not those of `token`."""
    if width % heads:
        raise ValueError(f"heads must divide the width {width}; got {heads}")
    return Decoder(tokens, context, width, depth, heads)


def next_character_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats per character: the `loss` for `training.fit`."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1)


def bits_per_sentence(model: nn.Module, texts: list[str], *, batch_size: int = 250) -> torch.Tensor:
    """−log₂ of the probability that the model gives to each sentence, float64 of shape (n,).

    Raises: ValueError if the model gives logits that are not finite.
    """
    split = encode(texts)
    with evaluating(model):
        logits = torch.cat([model(tokens) for tokens in split.images.split(batch_size)]).double()
    bits = F.cross_entropy(logits.transpose(1, 2), split.labels, ignore_index=-1, reduction="none").sum(dim=1) / math.log(2)
    if not torch.isfinite(bits).all():
        raise ValueError("the model gives NaN or infinite logits (did training diverge?)")
    return bits


def bits_per_character(bits: torch.Tensor, texts: list[str]) -> intervals.Estimate:
    """All bits over all characters, with the interval over sentences; `bits` may be differences of two models.

    Source: the ratio estimator's linear approximation, Cochran 1977, ch. 6.
    """
    lengths = torch.tensor([len(text) + 1 for text in texts], dtype=torch.float64)
    if bits.shape != lengths.shape:
        raise ValueError(f"need one number of bits a sentence; got {tuple(bits.shape)} for {len(texts)} sentences")
    ratio = bits.sum() / lengths.sum()
    return intervals.mean_over_runs((ratio + (bits - ratio * lengths) / lengths.mean()).numpy())


def generate(model: nn.Module, n: int, *, seed: int = 0) -> list[str]:
    """Let the model write `n` sentences, character by character, each drawn with the model's probability."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((n, 1), END)
    with evaluating(model):
        for _ in range(len(model.place)):
            chances = torch.softmax(model(tokens)[:, -1], dim=1)
            tokens = torch.cat([tokens, torch.multinomial(chances, 1, generator=generator)], dim=1)
    return ["".join(ALPHABET[t] for t in row[1:]).partition("\n")[0] for row in tokens.tolist()]
