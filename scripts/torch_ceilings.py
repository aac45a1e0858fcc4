"""What PyTorch reaches with single operations, and how scripts/torch_peer.py times: attention by each back end of
scaled_dot_product_attention, a large copy, large matrix products; in the sizes of `assay bench card`."""

import statistics
import time

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH,
}  # fmt: skip
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
WARM_UP = 3
REPEATS = 15
COPY_BYTES = 2**30
LARGE = {"bf16": 8192, "f32": 4096}  # rows and columns of a product


def is_out_of_memory(error):
    if isinstance(error, torch.OutOfMemoryError):
        return True
    signs = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def timed(step, count, device):
    """Seconds of each call; on a GPU by events, so that none waits for the one before."""
    if device == "cpu":
        marks = [time.perf_counter()]
        for i in range(count):
            step(i)
            marks.append(time.perf_counter())
        return [end - start for start, end in zip(marks, marks[1:])]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for i, mark in enumerate(marks[1:]):
        step(i)
        mark.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in zip(marks, marks[1:])]


def operation_seconds(operation, count, device):
    """Median seconds of an operation, what it takes to launch it not counted."""
    for _ in range(WARM_UP):
        operation()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda._sleep(50_000_000)  # some 30 ms, in which launches get ahead of the GPU
    return statistics.median(timed(lambda _: operation(), count, device))


def uniform(*shape, dtype, device):
    """Numbers in [-0.5, 0.5], drawn in f32: what operands hold decides how fast a card at its power limit is."""
    return (torch.rand(*shape, device=device) - 0.5).to(dtype)


def attention_seconds(request, head_size, backend, count, backward=True):
    """Seconds of the causal forward and backward pass, of inputs as a model has them: parts of one product."""
    (b, h, t, d), device = (request.batch, request.heads, request.seq, head_size), request.device
    qkv = uniform(b, t, 3 * h * d, dtype=DTYPES[request.dtype], device=device)
    q, k, v = (y.view(b, t, h, d).transpose(1, 2).detach().requires_grad_(backward) for y in qkv.chunk(3, dim=2))
    gradient = uniform(b, t, h, d, dtype=qkv.dtype, device=device).transpose(1, 2)

    def forward():
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    with sdpa_kernel(SDPA[backend]):
        seconds = [operation_seconds(forward, count, device)]
        if backward:
            out = forward()
            grad = lambda: torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True)  # noqa: E731
            seconds.append(operation_seconds(grad, count, device))
    return seconds


def attention_trial(request, head_size, count, backward=True):
    """For each back end the seconds of its passes, or why it has none; `math` only where no other works."""
    names, tried = [request.sdpa] if request.sdpa != "auto" else list(SDPA), {}
    for name in names:
        if request.sdpa == "auto" and name == "math" and any(isinstance(took, list) for took in tried.values()):
            break
        try:
            tried[name] = attention_seconds(request, head_size, name, count, backward)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            tried[name] = str(error).splitlines()[0]
    return tried


def attention(request):
    # Causality halves the two products of the forward pass, 2bht²d each; the backward pass has five.
    forward = 2 * request.batch * request.heads * request.seq**2 * request.head_size
    backends = attention_trial(request, request.head_size, REPEATS)
    for name, took in backends.items():
        if isinstance(took, list):
            forward_s, backward_s = took
            backends[name] = {
                "forward_s": forward_s, "forward_tflops": forward / forward_s / 1e12,
                "backward_s": backward_s, "backward_tflops": 2.5 * forward / backward_s / 1e12,
            }  # fmt: skip
    return {"dtype": request.dtype, "torch": torch.__version__, "backends": backends}


def ceilings(request):
    device = request.device
    sizes, bytes_copied = (LARGE, COPY_BYTES) if device == "cuda" else (dict.fromkeys(LARGE, 256), 2**24)
    source = uniform(bytes_copied // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copy_s = operation_seconds(lambda: target.copy_(source), REPEATS, device)
    answer = {"copy_gb_per_s": 2 * bytes_copied / copy_s / 1e9, "copy_bytes": bytes_copied, "product_sizes": sizes}
    for name, n in sizes.items():
        a, b = (uniform(n, n, dtype=DTYPES[name], device=device) for _ in range(2))
        answer[f"product_{name}_tflops"] = 2 * n**3 / operation_seconds(lambda: a @ b, REPEATS, device) / 1e12
    return answer
