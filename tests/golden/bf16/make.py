"""What bfloat16 costs in PyTorch: errors of its autocast on the golden models and on the golden training, against f32.

    python tests/golden/bf16/make.py >tests/golden/bf16/autocast.json

with torch 2.11 and transformers 4.38.0, from the root of the repository. A model's errors: of the losses of its batches, the
largest of any logit, and per parameter (Hugging Face's names) and over all the length of the difference of the gradients, on the
first two batches as one. An error is a matter of luck, most of all where a ReLU turns over: each is the largest of TRIES, after
the first with the weights moved by about a thirty-second of what bfloat16 can tell apart. The training: 30 steps of
training/adamw.json; the largest errors of a loss, of a gradient's norm (relative), of a final weight, and the length of the
difference of all final weights over that of their way.
"""

import json
import math
import pathlib

import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

GOLDEN = pathlib.Path("tests/golden")
TRIES = 8


def loss_of(model, batch):
    logits = model(batch).logits
    return cross_entropy(logits[:, :-1].float().flatten(0, 1), batch[:, 1:].flatten()), logits.float().detach()


def errors_of_model(folder):
    expected = json.loads((folder / "expected.json").read_text())
    if "grad" not in expected:
        return None
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    pair = torch.tensor(expected["batches"][:2])
    readable = [
        torch.tensor([batch])
        for batch, loss in zip(expected["batches"], expected["losses_reference"], strict=True)
        if isinstance(loss, float)
    ]

    def run(autocast):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss, logits = loss_of(model, pair)
            with torch.no_grad():
                losses = [loss_of(model, batch)[0].item() for batch in readable]
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return [loss.item(), *losses], logits, gradients

    generator = torch.Generator().manual_seed(1)
    tries = []
    for count in range(TRIES):
        if count > 0:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1 + 2.0**-13 * torch.randn(parameter.shape, generator=generator))
        (losses, logits, gradients), (other_losses, other_logits, other) = run(False), run(True)
        errors = {name: (other[name] - gradient).norm().item() for name, gradient in gradients.items()}
        tries.append(
            {
                "loss": max(abs(a - b) for a, b in zip(losses, other_losses, strict=True)),
                "logit": (other_logits - logits).abs().max().item(),
                "gradient": math.sqrt(sum(error**2 for error in errors.values())),
                "gradient_per_parameter": errors,
            }
        )
    largest = {what: max(errors[what] for errors in tries) for what in ["loss", "logit", "gradient"]}
    per_parameter = [errors["gradient_per_parameter"] for errors in tries]
    largest["gradient_per_parameter"] = {name: max(errors[name] for errors in per_parameter) for name in per_parameter[0]}
    return largest


def errors_of_training():
    golden = json.loads((GOLDEN / "training/adamw.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "training/init", torch_dtype=torch.float32).eval()
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    largest_loss = largest_norm = 0.0
    for line, micro_batches in zip(golden["log"], golden["batches"], strict=True):
        optimizer.zero_grad()
        mean = 0.0
        for rows in micro_batches:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss, _ = loss_of(model, torch.tensor(rows))
            (loss / len(micro_batches)).backward()
            mean += loss.item() / len(micro_batches)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        largest_loss = max(largest_loss, abs(mean - line["loss"]))
        largest_norm = max(largest_norm, abs(norm / line["grad_norm_before_clip"] - 1))
        for group in optimizer.param_groups:
            group["lr"] = line["lr"]
        optimizer.step()
    final = load_file(GOLDEN / "training/final.safetensors")
    differences, ways = [], []
    for name, p in model.named_parameters():
        golden_weight = final.get(name, final.get(name.removeprefix("transformer.")))
        differences.append((p.detach() - golden_weight).flatten())
        ways.append((golden_weight - first[name]).flatten())
    difference, way = torch.cat(differences), torch.cat(ways)
    return {
        "loss": largest_loss,
        "gradient_norm": largest_norm,
        "weight": difference.abs().max().item(),
        "way": (difference.norm() / way.norm()).item(),
    }


def main():
    torch.set_num_threads(1)
    models = {}
    for folder in sorted(path for path in (GOLDEN / "models").iterdir() if path.is_dir()):
        try:
            errors = errors_of_model(folder)
        except RuntimeError as error:  # autocast and GPT-2's "reorder and upcast" do not go together
            assert "upcasting" in str(error), error
            continue
        if errors:
            models[folder.name] = errors
    print(json.dumps({"torch": torch.__version__, "models": models, "training": errors_of_training()}, indent=1))


if __name__ == "__main__":
    main()
