#!/usr/bin/env python3
"""The PyTorch that scripts/gpu-gate and scripts/bench_against_torch measure is what it says, and cannot stop them.

    check_peer.py [ASSAY]

Its GPT-2 gives transformers' loss and gradient on the same weights, and has as many parameters as
`assay check` counts. Kept as a process it answers what is no request, what does not fit and what compiles too long by
saying so; killed or silent, it is replaced with the next request. The gate's judgement is held to figures made up here.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
sys.dont_write_bytecode = True
import torch  # noqa: E402
from gate_acceptance import acceptance, best  # noqa: E402
from gate_page import throughput  # noqa: E402
from gate_peer import DOES_NOT_FIT, PeerProcess  # noqa: E402
from gate_report import Failed, Report  # noqa: E402
from gate_speed import LARGE, MEASURE_LIMIT, SMALL, START_LIMIT, Speed  # noqa: E402
from torch_model import Decoder  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel  # noqa: E402

TINY = {"what": "train", "layers": 1, "width": 64, "heads": 2, "seq": 64, "batch": 1, "steps": 1, "compile": "none"}


def check(claim, seen):
    if not claim:
        sys.exit(f"check_peer.py: {seen}")


def as_transformers(peer, heads):
    """A GPT2LMHeadModel with the peer's weights; its matrices lie the other way round."""
    width, mlp_width = peer.norm.weight.numel(), peer.blocks[0].up.out_features
    config = GPT2Config(
        vocab_size=peer.token.num_embeddings, n_positions=peer.position.num_embeddings, n_embd=width,
        n_inner=mlp_width, n_layer=len(peer.blocks), n_head=heads, activation_function="gelu_new",
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    names = {"norm1": "ln_1", "qkv": "attn.c_attn", "out": "attn.c_proj"}
    names |= {"norm2": "ln_2", "up": "mlp.c_fc", "down": "mlp.c_proj"}
    weights = {"transformer.wte.weight": peer.token.weight, "transformer.wpe.weight": peer.position.weight}
    weights |= {f"transformer.ln_f.{part}": getattr(peer.norm, part) for part in ("weight", "bias")}
    for i, block in enumerate(peer.blocks):
        for ours, theirs in names.items():
            layer = getattr(block, ours)
            weight = layer.weight if layer.weight.dim() == 1 else layer.weight.t()
            weights |= {f"transformer.h.{i}.{theirs}.weight": weight, f"transformer.h.{i}.{theirs}.bias": layer.bias}
    missing = model.load_state_dict(weights | {"lm_head.weight": peer.token.weight}, strict=False)
    check(not missing.missing_keys and not missing.unexpected_keys, f"weights do not match: {missing}")
    return model


def model():
    torch.manual_seed(1)
    heads = 4
    peer = Decoder("gpt2", layers=3, width=64, heads=heads, mlp_width=200, vocab=500, seq=48)
    for parameter in peer.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    tokens, reference = torch.randint(500, (3, 49)), as_transformers(peer, heads)
    logits = reference(tokens[:, :-1]).logits
    theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    ours = peer.compiled_loss("none")(tokens)
    check(abs(ours - theirs) <= 1e-5 * theirs, f"the loss is {ours}, and {theirs} in transformers")
    # What the first layer's input gets has come back through everything.
    theirs.backward()
    ours.backward()
    gradients = peer.position.weight.grad, reference.transformer.wpe.weight.grad
    off = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    check(off <= 1e-5, f"the gradient is off by {off:.1e}")
    print(f"loss {ours:.6f}, in transformers {theirs:.6f}; gradients differ by {off:.1e}")


def parameters(assay):
    told = subprocess.check_output([assay, "check", ROOT / "recipes/gpt2-772m.yaml"], text=True)
    wanted = int(re.search(r"parameters +([\d,]+)", told)[1].replace(",", ""))
    with torch.device("meta"):
        small, large = (Decoder("gpt2", vocab=50257, **{"mlp_width": 0} | shape.sizes) for shape in (SMALL, LARGE))
    check(large.num_parameters() == LARGE.parameters == wanted, f"{large.num_parameters()} parameters, not {wanted}")
    check(small.num_parameters() == SMALL.parameters == 124_439_808, f"{small.num_parameters()} parameters in GPT-2")
    print(f"{wanted:,} parameters")


def fails(process, why, request, limit=60, compiling=False):
    try:
        answer = process.ask(request, limit)
    except Failed as error:
        told = [str(error), error.facts.get("compiling", False)]
        check(why in told[0] and told[1] == compiling, f"{request} was to fail with: {why}, and did with: {told}")
        return
    sys.exit(f"check_peer.py: {request} was to fail with: {why}, and was answered: {answer}")


def protocol():
    process = PeerProcess(dict(os.environ))
    first = process.ask(TINY, 100)
    pid = process.process.pid
    check(first["tokens_per_s"] > 0 and first["compile_s"] is not None, f"the first answer is {first}")
    check(process.ask(TINY | {"batch": 10**9}, 60) == DOES_NOT_FIT, "a batch of 10^9 fits")
    for line in (b"{", b"\xff", b"[1]", b"{}", b'{"what": "train", "batch": "x"}', b'{"what": "train", "bach": 1}'):
        process.process.stdin.write(line + b"\n")
        process.process.stdin.flush()
        said = process.answers.get(timeout=60)
        check(b"not a request" in said, f"{line} was answered by {said}")
    again = [process.ask(TINY, 60) for _ in range(2)]
    check(again[1]["compile_s"] is None and process.process.pid == pid, "the model was not kept")
    fails(process, "took longer than 1 s", TINY | {"compile": "whole", "compile_limit_s": 1}, compiling=True)
    endless = TINY | {"steps": 10**6}
    threading.Timer(5, lambda: os.kill(process.process.pid, 9)).start()
    fails(process, "ended with -9", endless)
    fails(process, "took longer than 5 s", endless, 5)
    check(process.ask(TINY, 100)["tokens_per_s"] > 0, "no process took the place of the killed one")
    process.kill()
    print("requests are answered, and what cannot be is told")


def fallbacks():
    """What does not compile is tried another way, once for all batches, and the reasons are kept."""

    def ways(*failures):
        class Torch:
            asked = []

            def ask(self, request, _):
                self.asked.append((request["compile"], request["sdpa"]))
                if len(self.asked) <= len(failures):
                    raise Failed("no", **failures[len(self.asked) - 1])
                return {"tokens_per_s": 1.0}

        options = argparse.Namespace(rehearse=False, compile_limit=9)
        with tempfile.TemporaryDirectory() as out:
            speed = Speed(options, Report(Path(out), 1, {}, "card", [], rehearsal=False), Torch())
            reasons = [speed.peer("train", LARGE, batch, "bf16", 1).get("given_up", []) for batch in (16, 32)]
        check(all(len(told) == len(failures) for told in reasons), f"reasons given: {reasons}")
        return Torch.asked

    wrong, slow = {"compiling": True}, {"compiling": True, "slow": True}
    whole, flash, blocks, none = ("whole", "auto"), ("whole", "flash"), ("blocks", "auto"), ("none", "auto")
    for failures, wanted in (
        ([], [whole, whole]),
        ([wrong], [whole, flash, flash]),
        ([slow], [whole, blocks, blocks]),
        ([wrong, slow, wrong], [whole, flash, blocks, none, none]),
    ):
        check(ways(*failures) == wanted, f"after {failures} the ways were {ways(*failures)}")
    print("what does not compile is tried another way")


def plan():
    """The work in its order, both rounds of it; what fails is told, and costs nothing else."""

    class Measured(Speed):
        asked = []

        def bench(self, what, shape, batch, dtype, steps, *options):
            self.asked.append((what, dtype, shape.name, batch, *options))
            if batch == 32:
                return DOES_NOT_FIT
            return {"tokens_per_s": 2.0} if what == "train" else self.assay(what)

        def peer(self, *_):
            self.asked.append("torch")
            return {"tokens_per_s": 1.0}

    options = argparse.Namespace(rehearse=False, batches=[16, 32, 8], rounds=2, assay="echo", compile_limit=9)
    with tempfile.TemporaryDirectory() as out:
        report = Report(Path(out), 1, {"PATH": os.environ["PATH"]}, "card", ["throughput"], rehearsal=False)
        speed = Measured(options, report, None)
        report.part("throughput", speed.throughput, proves=False)
    check([speed.patience("torch", 9) for _ in range(2)] == [9 + START_LIMIT, 9], "no call is the first")
    check(speed.patience("assay", MEASURE_LIMIT) == MEASURE_LIMIT, "the first call comes late")
    train, score, f32 = ("train", "bf16"), ("score", "bf16"), ("score", "f32")
    works = [(*train, 16), (*train, 32), (*score, 16), (*f32, 8), (*train, 8), (*score, 32), (*score, 8)]
    wanted = [(*work[:2], name, work[2]) for name in ("772M", "124M") for work in works]
    asked = [work for work in Measured.asked if work != "torch"]
    asked, again = asked[: len(wanted) + 1], asked[len(wanted) + 1 :]
    check(asked == [wanted[0], (*wanted[0], "--gelu-epilogue"), *wanted[1:]], f"the order is {asked}")
    check(Measured.asked[:4] == [wanted[0], "torch", asked[1], wanted[1]], f"the turns are {Measured.asked[:4]}")
    check(again == [work for work in asked if work[0] == "train" and work[3] != 32], f"the second round is {again}")
    facts = report.facts
    said = [entry["assay"] for entry in facts["throughput"] if entry["what"] == "score" and entry["batch"] != 32]
    check(all("no JSON" in told for told in said), f"of what is no JSON it is said: {said}")
    experiment = facts["throughput"][1]
    check(experiment["assay"]["rounds"] == [2.0, 2.0] and experiment["torch"] is None, f"the variant is {experiment}")
    check(len(facts["parts"][0]["failures"]) == 6, f"failures: {facts['parts'][0]}")
    table = list(throughput(facts))
    check("| train bf16: assay, GELU in products | 772M | 16 | 2 |  |" in table[3], f"the variant's row is {table[3]}")
    print("what matters most comes first")


def entry(what, dtype, batch, ours, theirs, **extent):
    flops = LARGE.train_flops_per_token / (1 if what == "train" else 3)
    kind = {"what": what, "dtype": dtype, "shape": LARGE.name, "batch": batch, "flops_per_token": flops}
    memory = {"gpu_mib": 60_000 * batch / 32, "gpu_estimate_mib": 61_000 * batch / 32} if what == "train" else {}
    return kind | {"assay": {"tokens_per_s": ours, **memory}, "torch": {"tokens_per_s": theirs, **extent}}


def judgement():
    told = [(8, {"forward_tflops": 170, "backward_tflops": 150}), (32, {"forward_tflops": 200, "backward_tflops": 160})]
    shapes = [{"batch": batch, "assay": {"attention": figures}, "torch": "not there"} for batch, figures in told]
    facts = {
        "card": "NVIDIA H100 80GB HBM3", "rehearsal": False, "ceilings": {"shapes": shapes},
        "parts": [
            {"name": "determinism, 124M", "result": "passed"},
            {"name": "memory, 772M", "gpu_mib": 20_500, "gpu_estimate_mib": 20_000, "nvidia_smi_mib": 21_000},
        ],
        "throughput": [
            entry("train", "bf16", 16, 90_000, 70_000), entry("train", "bf16", 32, 95_000, 86_000),
            entry("score", "bf16", 16, 300_000, 200_000), entry("score", "f32", 8, 30_000, 28_000),
            entry("train", "bf16", 8, 80_000, 60_000), entry("score", "bf16", 8, 290_000, 190_000),
            entry("score", "bf16", 32, 0, 190_000) | {"assay": DOES_NOT_FIT},
        ],
    }  # fmt: skip
    # What is not judged: an experiment, and the memory of a small model.
    experiment = entry("train", "bf16", 16, 200_000, 0) | {"variant": "gelu-epilogue", "torch": None}
    small = entry("train", "bf16", 16, 900_000, 0) | {"shape": SMALL.name, "torch": "not measured"}
    small["assay"] |= {"gpu_mib": 2_000, "gpu_estimate_mib": 1_000}
    facts["throughput"] += [experiment, small]
    check(best(facts)[0]["torch"]["batch"] == 32, "PyTorch's best batch is another")
    holds = [line["holds"] for line in acceptance(facts)]
    check(holds == [True, True, False, True, False, True, True, True, True, None], f"judged {holds}")
    share = acceptance(facts)[1]["figure"]
    wanted = 95_000 * (6 * 768_129_536 + 6 * 36 * 1280 * 1024) / 989e12
    check(abs(share - wanted) < 1e-9, f"the share of the peak is {share}, not {wanted}")
    memory = acceptance(facts)[6]
    check(abs(memory["figure"] - 0.025) < 1e-9 and "21000 MiB" in memory["remark"], f"memory is judged {memory}")
    check("at batch 8" in acceptance(facts)[2]["line"], "the line of f32 hides its batch")
    # No batch is the best before all are known.
    for program in ("assay", "torch"):
        late = [one | ({program: "not measured"} if one["batch"] == 8 else {}) for one in facts["throughput"]]
        lines = acceptance(facts | {"throughput": late})
        told = [(line["figure"], line["holds"]) for line in lines[:4] if "times torch" in line["line"]]
        check(told == [(None, None)] * 3, f"without batch 8 of {program} it is judged {told}")
        check("8, 16, 32 measured: " in lines[0]["remark"] and "16, 32" in lines[0]["remark"], lines[0]["remark"])
    names = ("NVIDIA H200", "NVIDIA H200 NVL", "NVIDIA GH200 480GB", "NVIDIA H100 80GB HBM3 MIG")
    shares = [acceptance(facts | {"card": name})[1]["holds"] for name in names]
    check(shares == [True, None, None, None], f"the shares of {names} hold: {shares}")
    # Eager PyTorch is no measure, another card has another peak, and what does not fit does not.
    facts["card"] = "NVIDIA H100 PCIe"
    eager = entry("train", "bf16", 16, 90_000, 70_000, compile="none", given_up=["whole: too long"])
    too_large = entry("train", "bf16", 32, 0, 0) | {"assay": DOES_NOT_FIT, "torch": DOES_NOT_FIT}
    facts["throughput"] = [eager, eager | {"batch": 8}, too_large]
    holds = [line["holds"] for line in acceptance(facts)]
    check(holds == [None, None, None, None, False, True, True, False, True, None], f"judged {holds}")
    facts["ceilings"]["shapes"][0]["assay"]["attention"] = "broken"
    check([line["holds"] for line in acceptance(facts)][4:7] == [None, None, True], "one broken figure has cost others")
    check(not any(line["holds"] for line in acceptance(facts | {"rehearsal": True})), "a rehearsal holds something")


def main():
    model()
    parameters(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/release/assay")
    judgement()
    plan()
    fallbacks()
    protocol()


if __name__ == "__main__":
    main()
