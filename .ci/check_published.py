#!/usr/bin/env python3
"""Looks at what a run has published on the embedded network with nothing but Python's own means and transformers.

    check_published.py LOCAL_DIR RUN_DIR [--assay PATH]

- The newest commitment of `miner` stands on the ledger (SQLite) and names a commit of the hub folder; the hash of that
  commit's files, computed here as the subnet's validators do (see `directory_hash`), is the committed one.
- There is exactly one commit in the repository and one commitment of the hotkey.
- The published model and the rival load in transformers, in float32, with safetensors only.
- The rival's loss in PyTorch, on the run's held-out rows, is the unigram cross-entropy that the run recorded, within 1e-4;
  the published model's is lower than that on the same rows, and the one that the run recorded, within 1e-5 relative.
"""

import argparse
import base64
import collections
import hashlib
import json
import math
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"

import torch
from transformers import AutoModelForCausalLM

# What transformers fetches of a repository with one file of weights.
FETCHED = ("config.json", "generation_config.json", "model.safetensors")


def directory_hash(folder):
    """SHA-256 over the base64 texts of each file's SHA-256, files by name, in base64."""
    digests = []
    for name in sorted(os.listdir(folder)):
        if name in FETCHED:
            digest = hashlib.sha256()
            with open(folder / name, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            digests.append(base64.b64encode(digest.digest()).decode())
    return base64.b64encode(hashlib.sha256("".join(digests).encode()).digest()).decode()


def commitments(ledger, hotkey):
    query = "SELECT block, bytes FROM commitments WHERE hotkey = ? ORDER BY block, id"
    with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as connection:
        return [(block, bytes(text).decode()) for block, text in connection.execute(query, (hotkey,))]


def published(local, hotkey):
    """The folder of a hotkey's model on the hub, found and checked by its commitment."""
    found = commitments(local / "ledger.sqlite", hotkey)
    if len(found) != 1:
        sys.exit(f"{hotkey} has {len(found)} commitments instead of one: {found}")
    block, text = found[0]
    namespace, name, commit, committed_hash = text.split(":")
    repository = local / "hub" / namespace / name
    commits = [entry.name for entry in repository.iterdir() if entry.is_dir()]
    if commits != [commit]:
        sys.exit(f"{repository} holds the commits {commits}; {commit} was committed to the chain")
    actual = directory_hash(repository / commit)
    if actual != committed_hash:
        sys.exit(f"{repository / commit} has the hash {actual}; {committed_hash} was committed")
    print(f"{hotkey}: {text} at block {block}: the hash is right ({len(text)} bytes)")
    return repository / commit


@torch.inference_mode()
def mean_loss(folder, rows):
    model = AutoModelForCausalLM.from_pretrained(folder.resolve(), use_safetensors=True, local_files_only=True).eval()
    if next(model.parameters()).dtype != torch.float32:
        sys.exit(f"{folder} is not loaded in float32")
    losses = []
    for row in rows:
        inputs = torch.tensor([row])
        logits = model(inputs).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, inputs[0, 1:]).item())
    return sum(losses) / len(losses)


def main():
    default_assay = Path(__file__).resolve().parent.parent / "target/release/assay"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("local_dir", type=Path)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--assay", default=str(default_assay))
    arguments = parser.parse_args()

    own, rival = published(arguments.local_dir, "miner"), published(arguments.local_dir, "unigram")
    records = [json.loads(line) for line in (arguments.run_dir / "metrics.jsonl").read_text().splitlines()]
    evaluation = [record for record in records if "held_out_loss" in record][-1]
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.json"
        subprocess.run(
            [arguments.assay, "score", str(own), "--rows", "16", "--write-tokens", str(tokens), "--json"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        rows = json.loads(tokens.read_text())

    # The rows are those of the run: their own entropy, counted here, is the recorded one.
    counts = collections.Counter(token for row in rows for token in row[1:])
    total = sum(counts.values())
    entropy = -sum(count / total * math.log(count / total) for count in counts.values())
    if abs(entropy - evaluation["unigram_entropy"]) > 1e-9:
        sys.exit(f"the rows have the entropy {entropy}, the run's {evaluation['unigram_entropy']}")

    unigram, rival_loss, own_loss = evaluation["unigram_cross_entropy"], mean_loss(rival, rows), mean_loss(own, rows)
    print(f"rival: {rival_loss:.6f} in PyTorch, unigram cross-entropy {unigram:.6f}; own model: {own_loss:.6f}")
    if abs(rival_loss - unigram) > 1e-4:
        sys.exit("the rival's loss is not the unigram cross-entropy")
    if abs(own_loss - evaluation["held_out_loss"]) > 1e-5 * own_loss:
        sys.exit(f"the run recorded {evaluation['held_out_loss']} for the published model")
    if not own_loss < unigram:
        sys.exit("the published model is no better than counting words")


if __name__ == "__main__":
    main()
