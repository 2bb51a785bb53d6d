"""The tokenizer of the tiny models: byte-level, a few hundred tokens, learned from a list of words."""

from collections import Counter
from functools import lru_cache
from itertools import pairwise

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

MERGES = 240
"""Joins that the random models' tokenizer learns."""

# Letters stay whole words, digits stand alone, a space belongs to the word after it: as in Qwen's tokenizers.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

WORDS = (
    "the of and to in is you are one which would this that with for on as it from each at by all most likely user "
    "person page slot slots label labels letter number box boxes image picture item items list option options choose "
    "chooses click clicks clicked look looks looking see shown drawn answer only just reply give name profile likes "
    "movie film music news book product price value text left right top bottom row column first second third next "
    "system assistant what where how their they who will not more than before after have has been was were"
)


def build_tokenizer(merges: list[tuple[str, str]], special_tokens: tuple[str, ...]) -> Tokenizer:
    """A tokenizer of all bytes, the given joins, and special tokens behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    return tokenizer


@lru_cache
def learn_merges(text: str, count: int | None) -> tuple[tuple[str, str], ...]:
    """Byte-pair encoding: join the commonest neighbours, ties in alphabetical order (Sennrich et al. 2016)."""
    words = text.split()
    split = [list(word) for word in [*words, *("Ġ" + word for word in words)]]
    merges: list[tuple[str, str]] = []
    seen: set[str] = set()
    while count is None or len(merges) < count:
        pairs = Counter(pair for word in split for pair in pairwise(word))
        # Two different pairs may spell the same token, which can stand in the vocabulary only once.
        fresh = [p for p in pairs if p[0] + p[1] not in seen]
        if not fresh:
            break
        left, right = min(fresh, key=lambda p: (-pairs[p], p))
        merges.append((left, right))
        seen.add(left + right)
        split = [_join(word, left, right) for word in split]
    return tuple(merges)


def _join(word: list[str], left: str, right: str) -> list[str]:
    joined: list[str] = []
    for symbol in word:
        if joined and joined[-1] == left and symbol == right:
            joined[-1] = left + right
        else:
            joined.append(symbol)
    return joined
