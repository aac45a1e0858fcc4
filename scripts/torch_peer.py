#!/usr/bin/env python3
"""PyTorch doing what `assay bench` does: GPT-2 or Llama trained or scored on random tokens, as fast as it goes, timed.

    "$(scripts/python-env)" scripts/torch_peer.py train|score --layers L --width D --heads H [--mlp-width M] --vocab V
        --seq T --batch B --steps N [--compile whole|blocks|none] [--sdpa auto|flash|cudnn|efficient|math]
        [--device cpu|cuda] [--dtype f32|bf16] …
    … scripts/torch_peer.py attention --batch B --heads H --seq T --head-size D   # both passes by each back end
    … scripts/torch_peer.py ceilings                                  # a large copy and large matrix products
    … scripts/torch_peer.py serve                                     # answers requests, one a line

A training step is nanoGPT's: bf16 autocast over float32 weights, torch.compile of the loss, the fastest back end of
scaled_dot_product_attention for this shape, clipping by global norm at 1.0, fused AdamW; the loss is not read until the
end. Scoring in bf16 holds weights in bf16, as transformers loads them; scoring in f32 is what the subnet's validators
did, so without TF32. The embedding is padded to a multiple of 64 rows, which count neither as parameters nor as tokens.

Prints one JSON object with these keys of `assay bench`: tokens_per_s and step_s (medians of the steps after warm-up),
gflops (6N + 6LdT per trained token, a third of it when scoring), peak_mib, on a GPU gpu_mib (the most that PyTorch's
allocator had in use, in the measured steps); and steps_s, compile_s (the first step, less a usual one), the SDPA back
end with the trial it won, and whether TF32 was on.

`serve` reads one JSON object a line, with `what` and the options above as keys (`mlp_width` for `--mlp-width`), and
answers each by one line: such an object, {"does_not_fit": why}, or {"error": why}, with "compiling": true where the
first, compiling step failed, and "slow": true where it outlasted `compile_limit_s`, after which the process ends, for a
compiler cannot be interrupted. Between requests it keeps compiled functions and weights, and drops them when anything
but batch and steps changes; all else of the GPU's memory it gives back before it answers.
"""

import argparse
import dataclasses
import gc
import json
import os
import resource
import statistics
import sys
import threading
import time

import torch
from torch import nn
from torch.nn.attention import sdpa_kernel
from torch_ceilings import SDPA, attention, attention_trial, ceilings, is_out_of_memory, timed
from torch_model import Decoder

CHOICES = {
    "what": ["train", "score", "attention", "ceilings"], "family": ["gpt2", "llama"], "dtype": ["f32", "bf16"],
    "device": ["cpu", "cuda"], "compile": ["whole", "blocks", "none"], "sdpa": ["auto", *SDPA],
}  # fmt: skip


@dataclasses.dataclass
class Request:
    """What is asked, from the command line or a line of JSON."""

    what: str
    family: str = "gpt2"
    layers: int = 12
    width: int = 768
    heads: int = 12
    mlp_width: int = 0  # 0: the family's
    vocab: int = 50257
    seq: int = 1024
    batch: int = 8
    steps: int = 5
    warm_up: int = 1
    dtype: str = "f32"
    device: str = "cpu"
    compile: str = "whole"
    compile_limit_s: int = 0  # 0: none
    sdpa: str = "auto"
    threads: int = 2
    head_size: int = 64  # of `attention`

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is not field.type:
                raise ValueError(f"{field.name} is to be of type {field.type.__name__}, and is {value!r}")
            if value not in CHOICES.get(field.name, [value]):
                raise ValueError(f"{field.name} is to be one of {', '.join(CHOICES[field.name])}, and is {value!r}")
            if field.type is int and value < (field.name not in ("mlp_width", "compile_limit_s")):
                raise ValueError(f"{field.name} is {value}, which is too little")
        if self.what in ("train", "score") and self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")

    @property
    def model(self):
        names = ("family", "layers", "width", "heads", "mlp_width", "vocab", "seq")
        return {name: getattr(self, name) for name in names}


class CompileFailed(Exception):
    """The first step of a compiled function failed, but not for memory."""


class Peer:
    """A model and what was compiled of it, kept for requests that differ in batch and steps only."""

    def __init__(self, request):
        torch.manual_seed(1)
        self.key, self.device = self.key_of(request), request.device
        self.is_training, self.bf16 = request.what == "train", request.dtype == "bf16"
        with torch.device(self.device):
            self.model = Decoder(**request.model)
        if self.bf16 and not self.is_training:
            self.model.bfloat16()
        self.loss_of = self.model.compiled_loss(request.compile)
        self.sdpa = {}  # of each batch: the back end that was taken, with what was tried

    @staticmethod
    def key_of(request):
        varying = {"batch": 0, "steps": 0, "warm_up": 0, "compile_limit_s": 0, "head_size": 0}
        return {**dataclasses.asdict(request), **varying}

    def new_optimizer(self):
        return torch.optim.AdamW(self.model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def train(self, tokens, optimizer):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.loss_of(tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    @torch.inference_mode()
    def score(self, tokens):
        return self.loss_of(tokens)

    def measure(self, request, watchdog):
        on_gpu, num_warm = self.device == "cuda", request.warm_up
        is_new = request.batch not in self.sdpa
        if is_new:
            tried = attention_trial(request, request.width // request.heads, 5, self.is_training)
            worked = {name: sum(took) for name, took in tried.items() if isinstance(took, list)}
            if not worked:
                raise RuntimeError(f"no back end of attention works: {tried}")
            self.sdpa[request.batch] = min(worked, key=worked.get), tried
        backend, tried = self.sdpa[request.batch]
        shape = (num_warm + request.steps, request.batch, request.seq + 1)
        batches = torch.randint(request.vocab, shape, device=self.device)
        optimizer = self.new_optimizer() if self.is_training else None
        step = (lambda i: self.train(batches[i], optimizer)) if self.is_training else (lambda i: self.score(batches[i]))
        with sdpa_kernel(SDPA[backend]):
            start = time.perf_counter()
            try:
                with watchdog:
                    step(0).item()
            except Exception as error:
                if is_out_of_memory(error) or request.compile == "none":
                    raise
                raise CompileFailed(f"{type(error).__name__}: {error}"[:2000]) from None
            first_s, losses = time.perf_counter() - start, []
            timed(lambda i: step(i + 1), num_warm - 1, self.device)
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            seconds = timed(lambda i: losses.append(step(i + num_warm)), request.steps, self.device)
        step_s = statistics.median(seconds)
        tokens_per_s = request.batch * request.seq / step_s
        num_parameters = self.model.num_parameters()
        flops_per_token = 6 * num_parameters + 6 * request.layers * request.width * request.seq
        answer = {
            "tokens_per_s": tokens_per_s, "step_s": step_s, "steps_s": seconds,
            "gflops": tokens_per_s * flops_per_token / (1 if self.is_training else 3) / 1e9,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "loss": losses[-1].item(), "parameters": num_parameters, "torch": torch.__version__,
            "compile": request.compile, "compile_s": max(first_s - step_s, 0) if is_new else None,
            "sdpa": backend, "sdpa_tried_s": tried,
            "tf32": torch.get_float32_matmul_precision() != "highest",
        }  # fmt: skip
        if on_gpu:
            answer["gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
            answer["gpu_reserved_mib"] = torch.cuda.max_memory_reserved() / 2**20
        self.model.zero_grad(set_to_none=True)
        return answer


class Watchdog:
    """Within its `with`, ends the process after so many seconds, when it has said why."""

    def __init__(self, limit_s, say):
        self.timer = threading.Timer(limit_s, self.bark, [limit_s, say]) if limit_s else None

    @staticmethod
    def bark(limit_s, say):
        why = f"the first step, which compiles, took longer than {limit_s} s"
        say({"error": why, "compiling": True, "slow": True})
        os._exit(3)

    def __enter__(self):
        if self.timer:
            self.timer.daemon = True
            self.timer.start()

    def __exit__(self, *_):
        if self.timer:
            self.timer.cancel()


class Server:
    """Answers requests; the device's memory between them holds weights, and no more."""

    def __init__(self):
        self.peer = None

    def drop(self):
        if self.peer is not None:
            self.peer = None
            torch._dynamo.reset()

    def answer(self, request, say):
        torch.set_num_threads(request.threads)
        # nanoGPT lets float32 products be TF32, of which bf16 leaves few; validators, in f32, did not.
        is_tf32 = request.dtype == "bf16" and request.what in ("train", "score")
        torch.set_float32_matmul_precision("high" if is_tf32 else "highest")
        if request.what in ("attention", "ceilings"):
            return attention(request) if request.what == "attention" else ceilings(request)
        if self.peer is None or self.peer.key != Peer.key_of(request):
            self.drop()
            self.peer = Peer(request)
        return self.peer.measure(request, Watchdog(request.compile_limit_s, say))

    def try_answer(self, request, say):
        """What came of it; whatever failed has left nothing behind."""
        try:
            return self.answer(request, say)
        except Exception as error:
            # No reference to the error may last: its frames hold tensors.
            if is_out_of_memory(error):
                failure = {"does_not_fit": str(error).splitlines()[0]}
            else:
                failure = {"error": f"{type(error).__name__}: {error}", "compiling": isinstance(error, CompileFailed)}
        self.drop()
        return failure

    def serve(self):
        # Answers alone go to stdout: what libraries print there goes to stderr.
        out, lock = os.fdopen(os.dup(1), "w"), threading.Lock()
        os.dup2(2, 1)

        def say(answer):
            with lock:
                print(json.dumps(answer), file=out, flush=True)

        for line in sys.stdin.buffer:
            try:
                request = Request(**json.loads(line))
            except (TypeError, ValueError) as error:
                say({"error": f"not a request: {error}", "compiling": False})
                continue
            answer = self.try_answer(request, say)
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            say(answer)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*CHOICES["what"], "serve"])
    for field in dataclasses.fields(Request)[1:]:
        name, choices = f"--{field.name.replace('_', '-')}", CHOICES.get(field.name)
        parser.add_argument(name, type=field.type, choices=choices, default=field.default)
    options = parser.parse_args()
    if options.what == "serve":
        return Server().serve()
    try:
        request = Request(**vars(options))
    except ValueError as error:
        parser.error(str(error))

    def say(answer):
        print(json.dumps(answer), flush=True)

    say(Server().answer(request, say))


if __name__ == "__main__":
    main()
