"""The table of scripts/bench: the same work by Tessera and PyTorch, in turns.

Each side of a row is a process that has its work ready and waits; one "go" is one round. Rounds of all sides follow one
another, so that what else the machine does hits all alike. Only one side has work at a time. See bench_worker.cpp and
pytorch_worker.py for what a row is.
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKER = ROOT / "build/release/bin/bench_worker"
ALL_REDUCE = ROOT / "build/release/bin/all_reduce_bench"
PYTHON = ROOT / "build/pytorch/bin/python"
PEER = ROOT / "bench/peers/pytorch_worker.py"
TEXT = ROOT / "build/bench_text.txt"

# PyTorch that gives every buffer back to the system loses a fifth to a half of its time to page faults.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "17179869184", "MALLOC_TRIM_THRESHOLD_": "17179869184",
               "MALLOC_TOP_PAD_": "67108864"}

# name, words of the workload, work of a round and its unit, words of its floor
ROWS = []
for shape in ("4x64", "4x256", "1x1024"):
    for dtype in ("f32", "bf16"):
        batch, length = map(int, shape.split("x"))
        ROWS.append((f"train gpt2 {dtype} {shape}", f"train gpt2 {dtype} {shape}", batch * length, "tok/s",
                     f"floor gpt2 {dtype} {shape}"))
ROWS.append(("train gpt2 bf16 state 4x256", "train gpt2 bf16state 4x256", 1024, "tok/s", "floor gpt2 bf16 4x256"))
for dtype in ("f32", "bf16"):
    ROWS.append((f"train char {dtype} 12x256", f"train char {dtype} 12x256", 3072, "tok/s", f"floor char {dtype} 12x256"))
for dtype in ("f32", "bf16"):
    ROWS.append((f"forward gpt2 {dtype} 4x256", f"forward gpt2 {dtype} 4x256", 1024, "tok/s", None))
for dtype in ("f32", "bf16"):
    for batch in (1, 8):
        ROWS.append((f"generate gpt2 {dtype} batch {batch}", f"generate gpt2 {dtype} {batch}", 32 * batch, "tok/s", None))
ROWS += [("AdamW 124M", "adamw", 124.439808, "Mparam/s", None), ("tiny operation", "tiny", 10_000e-6, "Mop/s", None),
         ("tokenize", f"tokenize {TEXT}", None, "MB/s", None)]


class Side:
    """A process that answers "go" with seconds."""

    def __init__(self, command, threads, environment=None):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **(environment or {})}
        self.words = tempfile.TemporaryFile(mode="w+")  # not a pipe: that would have to be read meanwhile
        self.process = subprocess.Popen([str(word) for word in command] + [str(threads)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=self.words, text=True, env=environment)
        self.seconds, self.peak = [], 0
        if self.process.stdout.readline().strip() != "ready":
            lines = self.said()
            raise RuntimeError(lines[-1] if lines else "ended without a word")

    def said(self):
        """Lines of its stderr."""
        self.words.seek(0)
        return [line.strip() for line in self.words.read().splitlines() if line.strip()]

    def go(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.seconds.append(float(self.process.stdout.readline()))

    def end(self):
        self.process.stdin.close()
        self.peak = int(self.process.stdout.readline().split()[1])
        self.process.wait()

    def median(self):
        return statistics.median(self.seconds)


def peers(words, has_pytorch):
    """name -> command, environment; the first is Tessera."""
    result = {"tessera": ([WORKER, *words], None)}
    if has_pytorch:
        for mode in ("eager", "compiled") if words[0] in ("train", "forward", "generate") else ("eager",):
            result[mode] = ([PYTHON, PEER, mode, *words], KEEP_MEMORY)
    return result


def measure(row, options, has_pytorch):
    name, workload, work, unit, floor = row
    sides, absent = {}, {}
    everything = peers(workload.split(), has_pytorch)
    if floor:
        everything["floor"] = ([WORKER, *floor.split()], None)
    for side, (command, environment) in everything.items():
        try:
            sides[side] = Side(command, options.threads, environment)
        except RuntimeError as error:
            absent[side] = str(error)
    for _ in range(options.rounds):
        for side in sides.values():
            side.go()
    for side in sides.values():
        side.end()
    return sides, absent


def written(value):
    return f"{value:>11,.0f}" if value >= 1000 else f"{value:>11.4g}"


def rate(side, work):
    return work / side.median()


def show(row, sides, absent, choices):
    name, _, work, unit, _ = row
    work = work if work is not None else TEXT.stat().st_size / 1e6
    cells = [f"{name:<28}", f"{unit:>9}"]
    for key in ("tessera", "eager", "compiled"):
        cells.append(written(rate(sides[key], work)) if key in sides else f"{'':>11}")
    best = max((rate(sides[key], work) for key in ("eager", "compiled") if key in sides), default=None)
    own = sides.get("tessera")
    cells.append(f"{rate(own, work) / best:>9.2f}" if own and best else f"{'':>9}")
    cells.append(f"{sides['floor'].median() / own.median():>8.0%}" if own and "floor" in sides else f"{'':>8}")
    theirs = [sides[key].peak for key in ("eager", "compiled") if key in sides]
    cells.append(f"{own.peak / 2**30:>8.2f}" if own else f"{'':>8}")
    cells.append(f"{min(theirs) / 2**30:>8.2f}" if theirs else f"{'':>8}")
    print(" ".join(cells), flush=True)
    for key, why in absent.items():
        print(f"    {key}: {why[:150]}", flush=True)
    if choices:
        for key in ("eager", "compiled"):
            for line in sides[key].said() if key in sides else []:
                if " of the other's time" in line:
                    print(f"    {key}: {line}", flush=True)


def processor():
    for line in open("/proc/cpuinfo", encoding="utf-8"):
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return "a processor without a name"


def make_text():
    """English, a few megabytes: the corpus of the quickstart."""
    if TEXT.exists():
        return
    TEXT.parent.mkdir(exist_ok=True)
    text = subprocess.run(["bible", "-f", "Gen1:1-Rev22:21"], capture_output=True, text=True, check=True).stdout
    TEXT.write_text(text, encoding="utf-8")


def beside_mpi(rounds):
    """A table of its own: the peer is MPI, and turns are taken inside of one job."""
    if not ALL_REDUCE.exists():
        print("all-reduce: left out, the build has no MPI", flush=True)
        return
    print(f"\n{processor()}:", flush=True)
    try:
        subprocess.run(["mpiexec", "-n", "2", str(ALL_REDUCE), "--rounds", str(rounds)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"scripts/bench: all-reduce was not measured: {error}")


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Tessera and PyTorch in turns, one table.")
    parser.add_argument("--only", default="", help="rows whose name matches this regular expression")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side; their median is shown [5]")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side [all cores]")
    parser.add_argument("--no-pytorch", action="store_true", help="Tessera alone")
    parser.add_argument("--choices", action="store_true", help="say below a row what PyTorch was found to be fastest with")
    options = parser.parse_args()
    rows = [row for row in ROWS if re.search(options.only, row[0])]
    all_reduce = re.search(options.only, "all-reduce")
    if not rows and not all_reduce:
        sys.exit("scripts/bench: no row matches --only; there are: " + "; ".join(row[0] for row in ROWS) + "; all-reduce")
    version = subprocess.run([PYTHON, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True,
                             check=False).stdout.strip() if PYTHON.exists() and not options.no_pytorch else ""
    if any(row[1].startswith("tokenize") for row in rows):
        try:
            make_text()
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"no text to tokenize ({error}); scripts/setup corpus installs one")
            rows = [row for row in rows if not row[1].startswith("tokenize")]
    if rows:
        print(f"{processor()}, {options.threads} threads; median of {options.rounds} rounds in turns; "
              + (f"PyTorch {version}" if version else "PyTorch is absent: Tessera's columns alone"))
        print(f"{'':<28} {'':>9} {'Tessera':>11} {'eager':>11} {'compiled':>11} {'ratio':>9} {'of floor':>8} {'GiB':>8} {'theirs':>8}")
        for row in rows:
            show(row, *measure(row, options, bool(version)), options.choices)
        print("\nratio: Tessera's rate over the better of PyTorch's. of floor: time of the step's matrix products and one AdamW\n"
              "pass alone, measured in the same turns, over the step's time. GiB: peak memory of the process.")
    if all_reduce:
        beside_mpi(options.rounds)


if __name__ == "__main__":
    main()
