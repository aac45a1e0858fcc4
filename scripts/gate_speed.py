"""The parts of scripts/gpu-gate that measure: the card's ceilings, a step by operations, throughput beside PyTorch."""

import dataclasses
import json
import re
import statistics

from gate_acceptance import F32_BATCH
from gate_peer import DOES_NOT_FIT
from gate_report import Failed, Skipped

VOCAB = 50257
MEASURE_LIMIT = 60  # seconds of one measurement, the peer's compiling not counted
START_LIMIT = 60  # more of a program's first call: the driver compiles assay's kernels, Python loads PyTorch
NOT_MEASURED = "not measured"


@dataclasses.dataclass(frozen=True)
class Shape:
    """A GPT-2."""

    name: str
    layers: int
    width: int
    heads: int
    seq: int = 1024
    mlp_width: int = 0  # 0: four times the width

    @property
    def sizes(self):
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if name != "name" and value}

    @property
    def arguments(self):
        return [word for name, value in self.sizes.items() for word in (f"--{name.replace('_', '-')}", value)]

    @property
    def parameters(self):
        d, m = self.width, self.mlp_width or 4 * self.width
        return (VOCAB + self.seq + 2) * d + self.layers * (4 * d * d + 2 * d * m + m + 9 * d)

    @property
    def train_flops_per_token(self):
        return 6 * self.parameters + 6 * self.layers * self.width * self.seq


SMALL = Shape("124M", 12, 768, 12)
LARGE = Shape("772M", 36, 1280, 20, mlp_width=5056)  # recipes/gpt2-772m.yaml
TINY = Shape("tiny", 1, 64, 2, seq=64)


@dataclasses.dataclass(frozen=True)
class Work:
    """What is measured in turns; a variant is an option of assay, which PyTorch has not."""

    shape: Shape
    what: str
    dtype: str
    batch: int
    variant: str | None = None

    @property
    def programs(self):
        return ("assay",) if self.variant else ("assay", "torch")

    def entry(self):
        """As throughput has it before it is measured."""
        entry = {"what": self.what, "dtype": self.dtype, "shape": self.shape.name, "sizes": self.shape.sizes}
        entry |= {"batch": self.batch} | ({"variant": self.variant} if self.variant else {})
        entry |= {"flops_per_token": self.shape.train_flops_per_token / (1 if self.what == "train" else 3)}
        return entry | {"rounds": [], "assay": NOT_MEASURED, "torch": None if self.variant else NOT_MEASURED}


class Speed:
    """The parts. `torch` is the process of the peer, or None where there is no PyTorch."""

    def __init__(self, options, report, torch):
        self.options, self.report, self.torch = options, report, torch
        tiny = options.rehearse
        self.device, self.peer_device = ("cpu", "cpu") if tiny else ("cuda:0", "cuda")
        self.started = set()  # programs that have had their first call
        self.attempts = {}  # by kind and shape: how the peer may still be compiled, and why not otherwise

    # ---- One measurement of each ----

    def patience(self, program, limit):
        """Seconds that its next call may take."""
        is_first = program not in self.started
        self.started.add(program)
        return limit + START_LIMIT * is_first

    def assay(self, *words):
        limit = self.patience("assay", MEASURE_LIMIT)
        output, _ = self.report.run(self.options.assay, "bench", *words, "--json", limit=limit)
        try:
            return json.loads(output)
        except ValueError as error:
            raise Failed(f"bench printed no JSON: {error}", output) from error

    def bench(self, what, shape, batch, dtype, steps, *rest):
        words = [*shape.arguments, "--vocab", VOCAB, "--batch", batch, "--steps", steps, "--device", self.device]
        words += ["--dtype", dtype] if what == "score" else []
        try:
            return self.assay(what, *words, *rest)
        except Failed as error:
            if re.search("out of memory|of memory and .* free", error.output):
                return DOES_NOT_FIT
            raise

    def ask(self, limit, **request):
        if self.torch is None:
            raise Skipped("no PyTorch")
        limit = self.report.time_for(self.patience("torch", limit))
        return self.torch.ask({"device": self.peer_device, **request}, limit)

    def ways_to_compile(self, what):
        """How much, and by which back end of attention, the best first: one that does not compile gives way to the
        oldest, and what compiles too long is compiled block by block. A rehearsal shows once that it can."""
        if self.options.rehearse:
            return [("whole", "auto"), ("none", "auto")][what == "score" :]
        return [("whole", "auto"), ("whole", "flash"), ("blocks", "auto"), ("none", "auto")]

    def peer(self, what, shape, batch, dtype, steps):
        """Compiled as far as that goes within the limit."""
        ways, reasons = self.attempts.setdefault((what, dtype, shape), (self.ways_to_compile(what), []))
        limit = int(self.options.compile_limit)
        request = {"what": what, "dtype": dtype, "vocab": VOCAB, "batch": batch, "steps": steps, **shape.sizes}
        request |= {"warm_up": 3, "compile_limit_s": limit}
        while True:
            extent, sdpa = ways[0]
            try:
                answer = self.ask(MEASURE_LIMIT + limit, **request, compile=extent, sdpa=sdpa)
                return answer | {"given_up": reasons} if reasons and isinstance(answer, dict) else answer
            except Failed as error:
                if not error.facts.get("compiling") or len(ways) == 1:
                    raise
                reasons.append(f"{extent}, {sdpa}: {error}")
                ways[:] = [way for way in ways[1:] if not error.facts.get("slow") or way[0] != extent]

    # ---- Throughput ----

    def plan(self):
        """What is to be measured, the most important first, for time may run out: of each kind of work the batch that
        tells most, whether the largest fits, then what else the best batch is chosen from."""
        if self.options.rehearse:
            return [Work(TINY, what, "f32", 1) for what in ("train", "score")]
        batches, train, score = self.options.batches, ("train", "bf16"), ("score", "bf16")
        works = [(*train, batch) for batch in batches[:2]]
        works += [(*score, batch) for batch in batches[:1]]
        works += [("score", "f32", batch) for batch in batches if batch == F32_BATCH]
        works += [(*train, batch) for batch in batches[2:]] + [(*score, batch) for batch in batches[1:]]
        plan = [Work(shape, *work) for shape in (LARGE, SMALL) for work in works]
        return [plan[0], dataclasses.replace(plan[0], variant="gelu-epilogue"), *plan[1:]]

    def throughput(self):
        rounds, steps = (1, 1) if self.options.rehearse else (self.options.rounds, 8)
        plan, refused, failures = self.plan(), {}, []
        entries = [work.entry() for work in plan]
        self.report.facts["throughput"] += entries
        for number in range(rounds):
            for work, entry in zip(plan, entries):
                figures = {}
                for program in work.programs:
                    figures[program] = self.figure(program, work, steps, refused, failures)
                if number == 0 or any(isinstance(figure, dict) for figure in figures.values()):
                    entry["rounds"].append(figures)
                self.summarize(entry)
                self.report.write()
        if failures:
            raise Failed(f"{len(failures)} measurements failed", failures=failures)
        figures = [entry[program] for work, entry in zip(plan, entries) for program in work.programs]
        late = sum(str(figure).startswith(NOT_MEASURED) for figure in figures)
        return {"measurements": len(figures) - late, "not_measured": late}

    def figure(self, program, work, steps, refused, failures):
        """One program's in one round, or why it has none; `refused` is what it has said that it will say again."""
        if (program, work) in refused:
            return refused[program, work]
        measure = {"assay": self.bench, "torch": self.peer}[program]
        options = [f"--{work.variant}"] if work.variant else []
        try:
            figure = measure(work.what, work.shape, work.batch, work.dtype, steps, *options)
        except (Failed, Skipped) as error:
            if self.report.is_over() or isinstance(error, Skipped):
                return f"{NOT_MEASURED}: {'no time was left' if self.report.is_over() else error}"
            figure, words = str(error), [work.what, work.dtype, work.shape.name, work.batch, *options]
            kind = f"{program}, {' '.join(map(str, words))}"
            failures.append({"kind": kind, "why": str(error), **error.facts})
        if not isinstance(figure, dict):
            refused[program, work] = figure
        return figure

    @staticmethod
    def summarize(entry):
        """The median over rounds of each program, and the ratio of those."""
        for program in entry["rounds"][0]:
            figures = [figures[program] for figures in entry["rounds"]]
            measured = [figure for figure in figures if isinstance(figure, dict)]
            entry[program] = figures[0]
            if measured:
                speeds = [figure["tokens_per_s"] for figure in measured]
                memory = [figure["gpu_mib"] for figure in measured if figure.get("gpu_mib")]
                entry[program] = {"tokens_per_s": statistics.median(speeds), "rounds": speeds}
                entry[program] |= {"gpu_mib": max(memory)} if memory else {}
                kept = ("gpu_estimate_mib", "mfu", "compile", "compile_s", "sdpa", "given_up")
                entry[program] |= {key: measured[0][key] for key in kept if measured[0].get(key) is not None}
        both = [entry["assay"], entry["torch"]]
        if all(isinstance(figure, dict) for figure in both):
            entry["ratio"] = both[0]["tokens_per_s"] / both[1]["tokens_per_s"]

    # ---- Ceilings and operations ----

    def collect(self, tries):
        """The answers to several questions, of which none stops another; `Failed` if one has none."""
        answers, missing = {}, []
        for name, question in tries:
            try:
                answers[name] = question()
            except (Failed, Skipped) as error:
                answers[name] = f"not there: {error}"
                missing.append(name)
            self.report.write()
        return answers, missing

    def ceilings(self):
        """What the card can: copies, products, attention; assay's kernels beside PyTorch's back ends."""
        tiny, facts, missing = self.options.rehearse, self.report.facts["ceilings"], []
        shape, batches = (TINY, [1]) if tiny else (LARGE, [8, 32])
        for batch in batches:
            attention = {"what": "attention", "dtype": "f32" if tiny else "bf16", "batch": batch, "seq": shape.seq}
            attention |= {"heads": shape.heads, "head_size": shape.width // shape.heads}
            card = [*shape.arguments, "--batch", batch, "--device", self.device]
            tries = [] if tiny else [("assay", lambda: self.assay("card", *card))]
            answers, without = self.collect([*tries, ("torch", lambda: self.ask(MEASURE_LIMIT, **attention))])
            facts["shapes"].append({"batch": batch, "shape": shape.name, **answers})
            missing += [f"{name} at batch {batch}" for name in without]
        answers, without = self.collect([("torch", lambda: self.ask(MEASURE_LIMIT, what="ceilings"))])
        facts |= answers
        if missing + without:
            raise Failed(f"not there: {', '.join(missing + without)}")
        return {"shapes": len(facts["shapes"])}

    def operations(self):
        """What each operation of a training step takes, and the least it could by the card's data sheet; a rehearsal
        has it on paper."""
        shape, batch = (TINY, 1) if self.options.rehearse else (LARGE, 16)
        if self.options.rehearse:
            paper = ["--batch", batch, "--paper", "NVIDIA H100 80GB HBM3"]
            profile = self.assay("train", *shape.arguments, *paper)
        else:
            profile = self.bench("train", shape, batch, "bf16", 3, "--profile")
        if not isinstance(profile, dict) or not profile.get("operations"):
            raise Failed(f"bench told no operations but: {profile}")
        self.report.facts["operations"] = {"shape": shape.name, "batch": batch, **profile}
        return {"operations": len(profile["operations"])}
