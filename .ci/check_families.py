#!/usr/bin/env python3
"""Every family of models the subnet allowed: trains it with assay, and holds what was saved to transformers.

    check_families.py [--assay PATH] [--one-step PATH] [--current SITE_PACKAGES]

A step of AdamW that assay takes with each family's golden model is the step that PyTorch takes, within 1e-4 of its length.
Then 50 steps by a recipe on the embedded text must lower the held-out loss; for Phi and Gemma, whose rules have another
tokenizer, the model of the single step stands in. What was saved loads in transformers with no tensor missing or left over,
and, saved again by it, has the same tensors; losses agree within 1e-5 relative; greedy continuations are the same 30 tokens.
`--current` repeats loading and losses with another transformers, in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ["gpt2", "mistral", "llama", "bart", "falcon", "gpt_neox", "gptj", "phi", "gemma"]
ROW_LEN = 160
PROMPT_LEN = 100
LOSS_TOLERANCE = 1e-5
STEP_TOLERANCE = 1e-4
RECIPE = """
name: {family}
model: {{family: {family}, layers: 2, heads: 4, width: 64}}
rules: {{sequence_length: {row_len}}}
data: {{source: sample}}
train: {{steps: 50, tokens_per_step: 1280, micro_batch: 8}}
optimizer: {{learning_rate: 3e-3}}
schedule: {{kind: constant, warmup_steps: 5}}
eval: {{every: 10, rows: 8}}
checkpoint: {{dir: {dir}}}
"""


def run(*command, env=None):
    finished = subprocess.run([str(part) for part in command], env=env, capture_output=True, text=True)
    if finished.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed with exit code {finished.returncode}: {finished.stderr}")
    return finished.stdout


def rows_of(vocab, num_rows, row_len):
    """Rows of ids that repeat in part, so that losses differ from those of noise."""
    return [[(i * i * 31 + row * 977 + i % 7) % vocab for i in range(row_len)] for row in range(num_rows)]


def train(assay, family, folder):
    recipe, out = folder / f"{family}.yaml", folder / family
    recipe.write_text(RECIPE.format(family=family, dir=out, row_len=ROW_LEN))
    run(assay, "--quiet", "train", recipe)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["held_out_loss"] for line in lines if "held_out_loss" in line]
    if not losses[-1] < losses[0] - 0.5:
        sys.exit(f"{family}: 50 steps took the held-out loss from {losses[0]} to {losses[-1]} only")
    return out / "latest", f"held-out loss {losses[0]:.3f} -> {losses[-1]:.3f}"


def reference_losses(model, rows):
    import torch

    with torch.inference_mode():
        logits = [model(torch.tensor([row])).logits[0, :-1] for row in rows]
    return [torch.nn.functional.cross_entropy(x, torch.tensor(row[1:])).item() for x, row in zip(logits, rows)]


def load(model_dir):
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        model_dir, use_safetensors=True, local_files_only=True, torch_dtype=torch.float32, output_loading_info=True
    )
    wrong = {key: list(value) for key, value in info.items() if value}
    if wrong:
        sys.exit(f"{model_dir}: transformers says {wrong}")
    return model.eval()


def compare(family, what, expected, found):
    worst = max(abs(a - b) / abs(a) for a, b in zip(expected, found, strict=True))
    if not worst <= LOSS_TOLERANCE:
        sys.exit(f"{family}: {what}: {found} instead of {expected}")
    return worst


def check_saved(assay, family, model_dir, folder):
    """Loss, continuation and tensors of a model that assay saved, in transformers 4.38.0."""
    import torch
    from safetensors.torch import load_file

    model = load(model_dir)
    rows = rows_of(model.config.vocab_size, 3, min(ROW_LEN, model.config.max_position_embeddings))
    (folder / "rows.json").write_text(json.dumps(rows))
    answer = json.loads(run(assay, "score", model_dir, "--tokens", folder / "rows.json", "--outputs", "--json"))
    expected = reference_losses(model, rows)
    # Where the outputs are repetitive, which those of so small a model may be, the losses are asked for alone.
    if not answer["reasonable_output"]:
        answer["losses"] = json.loads(run(assay, "score", model_dir, "--tokens", folder / "rows.json", "--json"))["losses"]
    worst = compare(family, "losses", expected, answer["losses"])
    # Gemma of transformers 4.38.0 fails when text grows beyond its context.
    can_grow = family != "gemma" or PROMPT_LEN + 30 <= model.config.max_position_embeddings
    for row, found in zip(rows if can_grow else [], answer["outputs"]):
        prompt = torch.tensor([row[:PROMPT_LEN]])
        end = model.config.eos_token_id
        output = model.generate(prompt, min_new_tokens=30, max_new_tokens=30, pad_token_id=end)
        if output[0, -30:].tolist() != found:
            sys.exit(f"{family}: assay continues with {found}, transformers with {output[0, -30:].tolist()}")
    again = folder / f"{family}-again"
    model.save_pretrained(again, safe_serialization=True)
    ours, theirs = load_file(model_dir / "model.safetensors"), load_file(again / "model.safetensors")
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
        sys.exit(f"{family}: transformers saves other tensors than it loaded")
    return worst, (model_dir / "config.json").read_bytes() == (again / "config.json").read_bytes()


def check_step(one_step, family, folder):
    """A step of AdamW with the golden model, by assay and by PyTorch."""
    import torch
    from safetensors.torch import load_file

    name = "falcon_7b_style" if family == "falcon" else family
    golden, out = ROOT / "tests/golden/models" / name, folder / f"{family}-step"
    expected = json.loads((golden / "expected.json").read_text())
    rows = expected["batches"][:2]
    (folder / "step.json").write_text(json.dumps(rows))
    run(one_step, golden, folder / "step.json", out)
    model = load(golden)  # eval(): without dropout
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    matrices = [value for value in model.parameters() if value.dim() > 1]
    others = [value for value in model.parameters() if value.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), eps=1e-8)
    tokens = torch.tensor(rows)
    logits = model(tokens).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1)).backward()
    gradients = {name: value.grad for name, value in model.named_parameters()}
    optimizer.step()
    found = load_file(out / "model.safetensors")
    difference, length = 0.0, 0.0
    for name, value in model.named_parameters():
        if gradients[name] is None and not torch.equal(found[name], before[name]):
            sys.exit(f"{family}: {name} has no gradient, and yet it changed")
        # The first step divides a gradient by its own size: where that is rounding, its direction is chance.
        is_sure = torch.zeros_like(value, dtype=torch.bool) if gradients[name] is None else gradients[name].abs() > 1e-7
        difference += ((found[name] - value)[is_sure]).double().pow(2).sum().item()
        length += ((value - before[name])[is_sure]).double().pow(2).sum().item()
    distance = (difference / length) ** 0.5
    if not distance <= STEP_TOLERANCE:
        sys.exit(f"{family}: the step is off by {distance} of its length")
    return distance


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assay", type=Path, default=ROOT / "target/release/assay")
    parser.add_argument("--one-step", type=Path, default=ROOT / "target/release/examples/one_step")
    parser.add_argument("--current", type=Path, help="site-packages of another transformers")
    parser.add_argument("--losses-of", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.losses_of:
        model_dir, rows = options.losses_of
        return print(json.dumps(reference_losses(load(model_dir), json.loads(rows.read_text()))))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for family in FAMILIES:
            line = f"{family:9} AdamW step within {check_step(options.one_step, family, folder):.1e}"
            model_dir = folder / f"{family}-step"
            if family not in ("phi", "gemma"):
                model_dir, told = train(options.assay, family, folder)
                line += f", {told}"
            worst, is_same = check_saved(options.assay, family, model_dir, folder)
            line += f", losses within {worst:.1e}"
            line += ", same config.json" if is_same else ""
            if options.current:
                environment = os.environ | {"PYTHONPATH": str(options.current)}
                command = [sys.executable, __file__, "--losses-of", model_dir, folder / "rows.json"]
                answer = run(*command, env=environment)
                expected = reference_losses(load(model_dir), json.loads((folder / "rows.json").read_text()))
                line += f", by the current transformers {compare(family, 'current', expected, json.loads(answer)):.1e}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
