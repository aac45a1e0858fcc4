#!/usr/bin/env python3
"""Scores a model folder with Hugging Face transformers and with assay, on the same tokens, and compares the losses.

    "$(scripts/python-env)" scripts/compare_with_transformers.py MODEL_DIR [--assay PATH] [--tokens FILE|random]

The reference loss is what subnet 9's validators compute: AutoModelForCausalLM in float32, the mean cross-entropy of
each token but the first given those before it. FILE is a JSON list of lists of token ids; `random` (the default) makes
lists of every length that matters, from 2 tokens to the model's whole context. Prints both losses of each list; exits
with 1 if any two differ by more than 1e-5 of the reference.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

# Nothing here may reach for the network: the folder holds all there is.
os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"

import torch
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-5


def random_lists(config, seed):
    generator = random.Random(seed)
    context, vocab = config.max_position_embeddings, config.vocab_size
    lengths = sorted({min(n, context) for n in (2, 3, 17, 100, context // 2, context - 1, context, context) if n >= 2})
    lists = [[generator.randrange(vocab) for _ in range(length)] for length in [*lengths, context]]
    # Repetition: other losses than those of noise.
    lists.append([generator.randrange(vocab) for _ in range(8)] * (context // 8))
    return lists


@torch.inference_mode()
def reference_loss(model, tokens):
    """As the validator: any exception, such as a row longer than the context, is an infinite loss."""
    try:
        inputs = torch.tensor([tokens])
        logits = model(inputs).logits[:, :-1].reshape(-1, model.config.vocab_size)
        return torch.nn.functional.cross_entropy(logits, inputs[:, 1:].reshape(-1)).item()
    except (IndexError, RuntimeError):
        return float("inf")


def assay_losses(assay, model_dir, token_file):
    command = [assay, "score", str(model_dir), "--tokens", str(token_file), "--json"]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return [float(loss) for loss in json.loads(answer.stdout)["losses"]]


def relative_difference(reference, ours):
    if reference == ours or (reference != reference and ours != ours):
        return 0.0
    difference = abs(reference - ours) / abs(reference)
    return difference if difference == difference else float("inf")


def main():
    default_assay = Path(__file__).resolve().parent.parent / "target/release/assay"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--assay", default=str(default_assay), help="the assay program (default: %(default)s)")
    parser.add_argument("--tokens", default="random", help="JSON file of lists of token ids, or random")
    parser.add_argument("--seed", type=int, default=1, help="of the random lists")
    arguments = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(
        arguments.model_dir.resolve(), use_safetensors=True, torch_dtype=torch.float32, local_files_only=True
    ).eval()
    if arguments.tokens == "random":
        lists = random_lists(model.config, arguments.seed)
    else:
        lists = json.loads(Path(arguments.tokens).read_text())
    with tempfile.TemporaryDirectory() as folder:
        token_file = Path(folder) / "tokens.json"
        token_file.write_text(json.dumps(lists))
        ours = assay_losses(arguments.assay, arguments.model_dir, token_file)
    if len(ours) != len(lists):
        sys.exit(f"assay answered with {len(ours)} losses for {len(lists)} lists")

    print(f"{'tokens':>7} {'transformers':>14} {'assay':>14} {'difference':>11}")
    worst = 0.0
    for tokens, loss in zip(lists, ours):
        reference = reference_loss(model, tokens)
        difference = relative_difference(reference, loss)
        worst = max(worst, difference)
        print(f"{len(tokens):7} {reference:14.8f} {loss:14.8f} {difference:11.1e}")
    print(f"largest relative difference {worst:.1e}, allowed {TOLERANCE:.0e}")
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
