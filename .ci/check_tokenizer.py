#!/usr/bin/env python3
"""Holds assay's tokenizer to Hugging Face's `tokenizers` 0.15.2, the reference's: the ids must be the same.

    check_tokenizer.py TOKENIZE [--documents N]

TOKENIZE is the program of `examples/tokenize.rs`. It writes the vocabulary, whose merges are the published file by its
hash. Then come N (a million) random documents, each drawn from a few alphabets: all of Unicode, words and fragments of
the vocabulary, contractions, digits, spaces and marks of all kinds, long runs, the special token and pieces of it. Some
are cut to a number of ids. At last there are single words of 1 MB, and the same of 10 MB, which the program must encode
in 128 MiB of memory.

Exits 1 at the first document whose ids are others.
"""

import argparse
import hashlib
import importlib.metadata
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import unicodedata
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes below are

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

VERSION = "0.15.2"
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
END_OF_TEXT = "<|endoftext|>"
ALL = 2**32 - 1
BATCH = 10_000
LONG_BYTES, HUGE_BYTES = 1_000_000, 10_000_000
# Enough for its tables, a text of 10 MB and 10 million ids in buffers that grow by doubling, which take 80 MB.
MAX_MEMORY = 128 << 20


def gpt2(vocabulary):
    """The reference's tokenizer. The ids of its vocabulary follow from the merges: bytes first, in the order of the
    characters that they are named by, those that name themselves before the others; then what each merge makes."""
    merges = (vocabulary / "merges.txt").read_text()
    digest = hashlib.sha256(merges.encode()).hexdigest()
    if digest != MERGES_SHA256:
        sys.exit(f"merges.txt has the SHA-256 {digest}, the published file {MERGES_SHA256}")
    named_by_itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    names = [chr(byte) for byte in named_by_itself] + [chr(0x100 + at) for at in range(256 - len(named_by_itself))]
    pairs = [tuple(line.split(" ")) for line in merges.splitlines()[1:]]
    vocab = {token: at for at, token in enumerate(names + [left + right for left, right in pairs])}
    tokenizer = Tokenizer(BPE(vocab, pairs))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def characters(*categories):
    return [chr(at) for at in range(0x110000) if unicodedata.category(chr(at)) in categories]


def alphabets(tokenizer):
    """Lists of strings that documents are made of."""
    tokens = [tokenizer.decode([at]) for at in range(50_256)]
    tokens = [token for token in tokens if "\ufffd" not in token]
    marks = characters("Mn", "Mc", "Me")
    spaces = [c for c in map(chr, range(0x110000)) if c.isspace()] + list("\u180e\u200b\u200c\u2060\ufeff\u0000")
    digits = characters("Nd", "Nl", "No")
    unicode = [chr(at) for at in range(0x110000) if not 0xD800 <= at < 0xE000]
    assigned = [c for c in unicode if unicodedata.category(c) not in ("Cn", "Co")]
    scripts = [
        "".join(map(chr, block))
        for block in [range(0x370, 0x590), range(0x590, 0x780), range(0x900, 0xE00), range(0xE00, 0x1100),
                      range(0x3040, 0x3100), range(0x4E00, 0x9FFF), range(0xAC00, 0xD7A4), range(0x1D400, 0x1D800)]
    ]  # fmt: skip
    contractions = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "'", "’s", "'l", "'r", "'v", "''"]
    special = [END_OF_TEXT, "<|", "|>", "endoftext", "<|endoftext", "|endoftext|>", "<<|endoftext|>>", "<|endoftext|", "<"]
    emoji = ["🙂", "👩", "\u200d", "🏽", "❤", "\ufe0f", "🇩", "🇪", "1\ufe0f\u20e3", "🏴\U000e0067\U000e007f"]
    ascii = [chr(at) for at in range(128)]
    words = [token for token in tokens if token.startswith(" ") and token[1:].isalpha()]
    return [
        ascii, ascii, list("ab "), list("aeh"), list(" \n"), list("-=_.*#"), list("ÃÂ \u00a0"), tokens, tokens, words, words,
        contractions, special, spaces, spaces + ["a", "1", "!"], digits, list("0123456789.,-"), marks,
        list("eao") + marks, emoji, unicode, assigned, assigned, *map(list, scripts),
    ]  # fmt: skip


def document(draw, alphabets):
    """One to four stretches, each of one alphabet or of two. A stretch has a few strings, or now and then a long run."""
    parts = []
    for _ in range(draw.randint(1, 4)):
        alphabet = draw.choice(alphabets)
        if draw.random() < 0.3:
            alphabet = draw.choices(alphabet, k=8) + draw.choices(draw.choice(alphabets), k=8)
        parts += draw.choices(alphabet, k=int(draw.expovariate(1 / 6)))
        if draw.random() < 0.02:
            parts.append("".join(draw.choices(alphabet, k=draw.randint(1, 3))) * draw.randint(1, 400))
    if draw.random() < 0.001:
        parts += draw.choices(draw.choice(alphabets), k=5000)
    return "".join(parts)


def limit_memory():
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))


def encoded(tokenize, documents, preparation=None):
    """Ids of pairs of a text and the most ids that are wanted of it."""
    texts = [(text.encode(), most) for text, most in documents]
    numbers = lambda *values: b"".join(value.to_bytes(4, "little") for value in values)
    request = b"".join(numbers(len(text), most) + text for text, most in texts)
    answer = subprocess.run([tokenize], input=request, stdout=subprocess.PIPE, check=True, preexec_fn=preparation).stdout
    found, at = [], 0
    for _ in documents:
        end = at + 4 + 2 * int.from_bytes(answer[at : at + 4], "little")
        found.append(np.frombuffer(answer[at + 4 : end], "<u2").tolist())
        at = end
    if at != len(answer):
        sys.exit(f"{len(answer) - at} bytes follow the last document's ids")
    return found


def compare(tokenize, tokenizer, documents):
    """Number of ids, all as they should be."""
    expected = tokenizer.encode_batch([text for text, _ in documents])
    found = encoded(tokenize, documents)
    for (text, most), ids, encoding in zip(documents, found, expected):
        if ids != encoding.ids[:most]:
            short = text if len(text) < 1000 else f"{text[:1000]}… ({len(text)} characters)"
            sys.exit(f"{short!r}, at most {most} ids: found {ids[:1000]}, expected {encoding.ids[:most][:1000]}")
    return sum(map(len, found))


def start(tokenize, vocabulary):
    """Makes what each process of the pool works with."""
    global worker
    tokenizer = gpt2(vocabulary)
    worker = tokenize, tokenizer, alphabets(tokenizer)


def batch(seed_and_size):
    seed, size = seed_and_size
    tokenize, tokenizer, alphabets = worker
    draw = random.Random(seed)
    most = lambda: draw.randint(0, 40) if draw.random() < 0.2 else ALL
    return compare(tokenize, tokenizer, [(document(draw, alphabets), most()) for _ in range(size)])


def words(num_bytes):
    """Single pieces of so many bytes: what no merge is local in, and what has many."""
    draw = random.Random(1)
    for text in ["a", " ", "=", "ab", "🙂", "\u0301", "ÃÂ"]:
        yield text * (num_bytes // len(text.encode()))
    for first, last in [("a", "z"), ("а", "я"), ("一", "龥"), ("\U00020000", "\U0002a000")]:
        alphabet = [chr(at) for at in range(ord(first), ord(last) + 1)]
        yield "".join(draw.choices(alphabet, k=num_bytes // len(first.encode())))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tokenize", type=Path)
    parser.add_argument("--documents", type=int, default=1_000_000)
    arguments = parser.parse_args()
    tokenize = arguments.tokenize.resolve()
    if (version := importlib.metadata.version("tokenizers")) != VERSION:
        sys.exit(f"needs tokenizers {VERSION}, not {version}")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([tokenize, "--vocabulary", folder], check=True)
        started = time.monotonic()
        sizes = [min(BATCH, arguments.documents - done) for done in range(0, arguments.documents, BATCH)]
        with multiprocessing.Pool(initializer=start, initargs=(tokenize, Path(folder))) as pool:
            num_ids = sum(pool.imap_unordered(batch, enumerate(sizes)))
        print(f"{arguments.documents} documents, {num_ids} ids: all the same, {time.monotonic() - started:.0f} s")
        tokenizer = gpt2(Path(folder))
    for word in words(LONG_BYTES):
        compare(tokenize, tokenizer, [(word, ALL), (word, 1024)])
    print(f"single words of {LONG_BYTES} bytes: the same")
    for word in words(HUGE_BYTES):
        started = time.monotonic()
        whole, cut = encoded(tokenize, [(word, ALL), (word, 1024)], limit_memory)
        print(f"{word[:4]!r}… of {HUGE_BYTES} bytes: {len(whole)} ids, {time.monotonic() - started:.1f} s")
        if cut != whole[:1024]:
            sys.exit(f"{word[:4]!r}…: its first 1024 ids are others than {cut}")


if __name__ == "__main__":
    main()
