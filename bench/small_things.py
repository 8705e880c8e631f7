"""scripts/bench --small-things: how long a program takes to start, quickstart's model on 1, 2 and 4 ranks, and its log.

Rows take turns, round by round; a ratio is the median of the rounds' ratios with the row it is compared to. A start-up is
the time from exec to exit of a training of one step, less what the step itself took.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
BIN = ROOT / "build/release/bin"
TINY = ["--model", "layers=1,heads=2,width=32,context=32", "--batch", "2", "--eval-tokens", "64", "--steps", "1"]
TINY_TOKENS = 2 * 32  # of its step
# The model and batch of scripts/quickstart.
QUICKSTART = ["--model", "layers=4,heads=4,width=128,context=256", "--batch", "8", "--eval-tokens", "2048"]


def ranks_as(kind, count):
    """What stands before the program, and after its name."""
    if count == 1:
        return [], []
    return (["mpiexec", "-n", str(count)], []) if kind == "processes" else ([], ["--ranks", str(count)])


class Trainings:
    def __init__(self, folder):
        self.folder = folder

    def run(self, arguments, kind="threads", ranks=1, log=True, output=subprocess.DEVNULL):
        """Seconds from exec to exit, and the steps of its log."""
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        before, after = ranks_as(kind, ranks)
        command = [*before, BIN / "gpt2_train", *arguments, "--data", self.folder / "data", "--out", out, *after]
        if log:
            command += ["--log", self.folder / "log.jsonl"]
        start = time.perf_counter()
        subprocess.run([str(word) for word in command], stdout=output, check=True)
        seconds = time.perf_counter() - start
        steps = [json.loads(line) for line in open(self.folder / "log.jsonl", encoding="utf-8")] if log else []
        return seconds, [step for step in steps if "tokens_per_second" in step]


def help_seconds():
    start = time.perf_counter()
    subprocess.run([BIN / "gpt2_train", "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def start_up(trainings, rounds):
    rows = {"gpt2_train --help": help_seconds}
    for name, kind, ranks in (("one step", "threads", 1), ("one step, --ranks 2", "threads", 2),
                              ("one step, mpiexec -n 2", "processes", 2)):
        def row(kind=kind, ranks=ranks):
            seconds, steps = trainings.run(TINY, kind, ranks)
            return seconds - TINY_TOKENS / steps[0]["tokens_per_second"]
        rows[name] = row
    times = {name: [] for name in rows}
    for _ in range(rounds):
        for name, row in rows.items():
            times[name].append(row())
    print("start-up, without the step      s  (least..most)")
    for name, each in times.items():
        print(f"{name:<26} {statistics.median(each):>8.3f}  ({min(each):.3f}..{max(each):.3f})", flush=True)


def speed(trainings, rounds, num_steps):
    rows = [("threads", 1), ("threads", 2), ("processes", 2), ("threads", 4), ("processes", 4)]
    rates = {row: [] for row in rows}
    for _ in range(rounds):
        for kind, ranks in rows:
            _, steps = trainings.run([*QUICKSTART, "--steps", str(num_steps)], kind, ranks)
            rates[kind, ranks].append(statistics.median(s["tokens_per_second"] for s in steps[5:]))
    print(f"\nquickstart's model            tok/s   to 1 rank  (least..most)    [{os.cpu_count()} cores, threads a rank: cores / ranks]")
    for (kind, ranks), each in rates.items():
        ratios = [a / b for a, b in zip(each, rates["threads", 1])]
        name = f"{ranks} {kind}" if ranks > 1 else "1 rank"
        print(f"{name:<26} {statistics.median(each):>8,.0f}  {statistics.median(ratios):>10.2f}  ({min(ratios):.2f}..{max(ratios):.2f})",
              flush=True)


def logging(trainings, rounds, num_steps):
    arguments = [*QUICKSTART, "--steps", str(num_steps)]
    ratios = []
    for _ in range(rounds):
        with open(trainings.folder / "terminal.txt", "w", encoding="utf-8") as terminal:
            written, _ = trainings.run([*arguments, "--progress", "bar"], output=terminal)
        silent, _ = trainings.run([*arguments, "--progress", "none"], log=False)
        ratios.append(written / silent)
    print(f"\na bar and a line of --log each step: {statistics.median(ratios):.3f} ({min(ratios):.3f}..{max(ratios):.3f}) of the time "
          "without either, from exec to exit")


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench --small-things", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each row [5]")
    parser.add_argument("--steps", type=int, default=60, help="of a training [60]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        text = subprocess.run(["bible", "-f", "Gen1:1-Deut34:12"], capture_output=True, text=True, check=True).stdout
        (folder / "text.txt").write_text(text, encoding="utf-8")
        subprocess.run([BIN / "gpt2_prepare", "--text", folder / "text.txt", "--out", folder / "data", "--vocab", "2048"],
                       stdout=subprocess.DEVNULL, check=True)
        trainings = Trainings(folder)
        start_up(trainings, options.rounds)
        speed(trainings, options.rounds, options.steps)
        logging(trainings, options.rounds, options.steps)


if __name__ == "__main__":
    main()
