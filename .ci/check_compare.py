#!/usr/bin/env python3
"""The comparison of `assay compare`, done again as the subnet's validators did it.

    check_compare.py [--assay PATH] [--batches N] [--seed S]

Six models of 4 blocks x 256, of four families, two of them in half precision, two of them another one with a little noise,
are published on an embedded network, at three blocks or more, and compared. Their losses, wins, win rates and weights are then computed anew by
transformers and PyTorch from the models' folders and the tokens that were scored: `compute_losses`, `iswin` and
`compute_wins` below are the validators' functions as RaoFoundation/pretraining had them in February 2024, written down again.

Whoever wins a batch must win it here too wherever the two losses that meet, the earlier model's lowered by epsilon, differ by
more than 2e-6 of themselves. The others are listed, and may be 1 in 10,000. Besides, the wins that assay counts must be
those of its own losses, without exception, and a second comparison must find the same without computing anything, in less
than 2 s. The first may take 1.15 times the processor time of scoring the same rows by `assay score`.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"

import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
)

EPSILON, TEMPERATURE = 0.005, 0.04
SECONDS_PER_BLOCK = 12
CLOSE = 2e-6
MOST_CLOSE = 1e-4
LOSS_TOLERANCE = 5e-6
MOST_SECONDS_AGAIN = 2.0
MOST_OVERHEAD = 1.15
VOCAB, WIDTH, LAYERS, HEADS, CONTEXT = 50257, 256, 4, 4, 1024


def configs():
    """Wide enough apart at the start that losses differ by about epsilon: wins are then mixed."""
    sizes = dict(vocab_size=VOCAB, bos_token_id=50256, eos_token_id=50256, initializer_range=0.035)
    wide = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, **sizes)
    yield "gpt2", GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT, **sizes)
    yield "llama", LlamaConfig(intermediate_size=2 * WIDTH, max_position_embeddings=CONTEXT, num_key_value_heads=2, **wide)
    yield "falcon", FalconConfig(**wide)
    yield "neox", GPTNeoXConfig(intermediate_size=4 * WIDTH, max_position_embeddings=CONTEXT, **wide)


def make_models(folder):
    """Name -> folder."""
    folders = {}

    def save(name, model):
        folders[name] = folder / name
        model.save_pretrained(folders[name], safe_serialization=True)

    torch.manual_seed(20240309)
    for name, config in configs():
        model = AutoModelForCausalLM.from_config(config)
        save(name, model.half() if name == "neox" else model)
        if name in ("gpt2", "llama"):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.3 * parameter.std() * torch.randn_like(parameter) if parameter.dim() > 1 else 0.0
            save(f"{name}-noisy", model.bfloat16() if name == "llama" else model)
    return folders


def compute_losses(model, batches):
    """A batch that fails has an infinite loss, and the next one goes on."""
    losses = []
    with torch.no_grad():
        for batch in batches:
            try:
                inputs = torch.tensor([batch])
                logits = model(inputs).logits
                shift_logits = logits[..., :-1, :].contiguous()
                shift_labels = inputs[..., 1:].contiguous()
                loss_fct = torch.nn.CrossEntropyLoss()
                loss = loss_fct(shift_logits.view(-1, model.config.vocab_size), shift_labels.view(-1)).item()
                losses.append(loss)
            except Exception:
                losses.append(math.inf)
    return losses


def met(loss_i, loss_j, block_i, block_j):
    """The two losses as they meet: the earlier model's is lowered."""
    loss_i = (1 - EPSILON) * loss_i if block_i < block_j else loss_i
    loss_j = (1 - EPSILON) * loss_j if block_j < block_i else loss_j
    return loss_i, loss_j


def iswin(loss_i, loss_j, block_i, block_j):
    loss_i, loss_j = met(loss_i, loss_j, block_i, block_j)
    return loss_i < loss_j


def compute_wins(uids, losses_per_uid, batches, uid_to_block):
    wins = {uid: 0 for uid in uids}
    win_rate = {uid: 0 for uid in uids}
    for i, uid_i in enumerate(uids):
        total_matches = 0
        for j, uid_j in enumerate(uids):
            if i == j:
                continue
            for batch_idx in range(len(batches)):
                win = iswin(
                    losses_per_uid[uid_i][batch_idx],
                    losses_per_uid[uid_j][batch_idx],
                    uid_to_block[uid_i],
                    uid_to_block[uid_j],
                )
                wins[uid_i] += 1 if win else 0
                total_matches += 1
        win_rate[uid_i] = wins[uid_i] / total_matches if total_matches > 0 else 0
    return wins, win_rate


def weights_of(uids, win_rate):
    model_weights = torch.tensor([win_rate[uid] for uid in uids], dtype=torch.float32)
    return torch.softmax(model_weights / TEMPERATURE, dim=0).tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--assay", type=Path, default=root / "target/release/assay", help="the program")
    parser.add_argument("--batches", type=int, default=16, help="rows to compare on")
    parser.add_argument("--seed", type=int, default=9, help="of the pages")
    args = parser.parse_args()
    failures = []

    def check(is_right, sentence):
        if not is_right:
            failures.append(sentence)

    def assay(*command):
        command = [str(args.assay), *map(str, command)]
        finished = subprocess.run(command, capture_output=True, text=True)
        if finished.returncode != 0:
            sys.exit(f"{' '.join(command)} failed with exit code {finished.returncode}: {finished.stderr}")
        return finished.stdout

    with tempfile.TemporaryDirectory() as temporary:
        temporary = Path(temporary)
        network = temporary / "network"
        folders = make_models(temporary)
        assay("local", "init", "--local", network)
        for number, (name, folder) in enumerate(folders.items()):
            if number in (2, 4):
                time.sleep(SECONDS_PER_BLOCK + 0.5)
            assay("local", "register", name, "--local", network)
            assay("publish", folder, "--local", network, "--repo", f"check/{name}", "--hotkey", name)
        # The rival that the network is made with has uid 1, and is not ours to judge.
        neurons = [model["uid"] for model in json.loads(compare(assay, network, [], 1, args.seed))["models"]]
        uids = [uid for uid in neurons if uid != 1]
        pages = max(3, -(-args.batches // 30))
        tokens = temporary / "tokens.json"
        options = ["--uids", ",".join(map(str, uids)), "--pages", pages, "--write-tokens", tokens]
        spent_before = processor_seconds()
        answer = json.loads(compare(assay, network, options, args.batches, args.seed))
        spent_first = processor_seconds() - spent_before
        again = json.loads(compare(assay, network, options, args.batches, args.seed))
        # The rows alone, scored without network, cache or statistics: what a comparison cannot do without.
        spent_before = processor_seconds()
        for folder in folders.values():
            assay("score", folder, "--tokens", tokens)
        spent_bare = processor_seconds() - spent_before

        batches = json.loads(tokens.read_text())
        models = {model["uid"]: model for model in answer["models"]}
        names = {uid: model["repo"].split("/")[1] for uid, model in models.items()}
        uids = list(models)
        check(sorted(names.values()) == sorted(folders), f"{names} instead of {list(folders)}")
        check(len(batches) == args.batches and all(len(batch) == CONTEXT for batch in batches), "other batches than asked for")
        ours = {uid: [float(loss) for loss in model["losses"]] for uid, model in models.items()}
        blocks = {uid: model["block"] for uid, model in models.items()}
        theirs = {}
        for uid in uids:
            model = AutoModelForCausalLM.from_pretrained(folders[names[uid]], use_safetensors=True, local_files_only=True)
            check(model.dtype == torch.float32, f"{names[uid]} was loaded as {model.dtype}")
            theirs[uid] = compute_losses(model.eval(), batches)

    worst = max(abs(a - b) / b for uid in uids for a, b in zip(ours[uid], theirs[uid], strict=True))
    check(worst <= LOSS_TOLERANCE, f"losses differ by up to {worst:.1e} of themselves")
    num_duels, num_mixed, close, wrong = 0, 0, [], []
    for i in uids:
        for j in uids:
            if i == j:
                continue
            here = [iswin(a, b, blocks[i], blocks[j]) for a, b in zip(ours[i], ours[j])]
            counted = answer["matrix"][uids.index(i)][uids.index(j)]
            check(sum(here) == counted, f"{names[i]} wins {sum(here)} times against {names[j]}, and {counted} are counted")
            num_mixed += 0 < sum(here) < len(here)
            for batch, won in enumerate(here):
                num_duels += 1
                duel = theirs[i][batch], theirs[j][batch], blocks[i], blocks[j]
                a, b = met(*duel)
                is_other = iswin(*duel) != won
                if not abs(a - b) > CLOSE * b:
                    close.append(f"batch {batch}, {names[i]} against {names[j]}: {a} {b}{', decided otherwise' * is_other}")
                elif is_other:
                    wrong.append(f"batch {batch}, {names[i]} against {names[j]}: {a} {b}")
    check(not wrong, "won by others: " + "; ".join(wrong))
    check(len(close) <= MOST_CLOSE * num_duels, f"{len(close)} of {num_duels} duels are too close to tell")
    check(num_mixed >= 4, f"only {num_mixed} of the pairs win and lose: the models are too far apart to tell anything")
    wins, win_rate = compute_wins(uids, theirs, batches, blocks)
    if not close:
        found = {uid: (model["wins"], model["win_rate"]) for uid, model in models.items()}
        expected = {uid: (wins[uid], win_rate[uid]) for uid in uids}
        check(found == expected, f"wins and win rates {found} instead of {expected}")
        for uid, weight in zip(uids, weights_of(uids, win_rate), strict=True):
            check(abs(models[uid]["weight"] - weight) <= 2e-6 * weight, f"weight {models[uid]['weight']} instead of {weight}")
    check(len(set(blocks.values())) >= 3, f"the models stand at the blocks {sorted(blocks.values())}")
    check(answer["scored"] + answer["from_cache"] == len(uids) * len(batches), "not every loss is accounted for")
    check(again["scored"] == 0, f"the second comparison computed {again['scored']} losses")
    for key in ("losses", "wins", "win_rate", "weight"):
        check([m[key] for m in answer["models"]] == [m[key] for m in again["models"]], f"the second comparison: other {key}")

    print(f"{len(uids)} models, {len(batches)} batches, {num_duels} duels; {num_mixed} of {len(uids) * (len(uids) - 1)} ordered pairs win and lose")
    print(f"losses agree to within {worst:.1e}; {len(wrong)} duels decided otherwise, {len(close)} too close to tell")
    for line in close:
        print(f"  {line}")
    for uid in uids:
        print(f"  {names[uid]}: block {blocks[uid]}, mean {sum(theirs[uid]) / len(batches):.4f}, {wins[uid]} wins")
    check(again["seconds"] < MOST_SECONDS_AGAIN, f"the second comparison took {again['seconds']:.2f} s")
    check(
        spent_first <= MOST_OVERHEAD * spent_bare,
        f"the first comparison took {spent_first:.1f} s of processor time, bare scoring {spent_bare:.1f} s",
    )
    print(f"processor time: first comparison {spent_first:.1f} s, bare scoring {spent_bare:.1f} s, {spent_first / spent_bare:.3f} times")
    print(f"first comparison {answer['seconds']:.1f} s, second {again['seconds']:.2f} s")
    if failures:
        sys.exit("\n".join(failures))


def processor_seconds():
    """Of all children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def compare(assay, network, options, batches, seed):
    return assay("compare", "--local", network, "--json", "--batches", batches, "--seed", seed, *options)


if __name__ == "__main__":
    main()
