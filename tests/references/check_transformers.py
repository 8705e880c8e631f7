"""Checks that Tessera and transformers understand each other's models and tokenizers, both ways, with the programs.

    check_transformers.py build/release/bin

For random small models: transformers saves one, gpt2_export (which reads it) saves it again, transformers loads that;
logits of both are compared. The first tokens of a greedy text are those of transformers. A model that gpt2_train trained
is exported and loaded, its tokenizer too. Ids of tokenizers are compared on many texts. Prints a line for each
comparison, and ends with status 1 if one fails.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import (AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig,
                          LlamaForCausalLM)
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

BIN = Path(sys.argv[1]).resolve()
ROOT = Path(__file__).resolve().parents[2]
TOKENIZERS = ROOT / "tests/data/tokenizers"
failures = 0


def report(what, good, detail=""):
    global failures
    failures += not good
    print(f"{'ok  ' if good else 'FAIL'}  {what}{': ' + detail if detail else ''}", flush=True)


def run(program, *arguments):
    done = subprocess.run([BIN / program, *map(str, arguments)], capture_output=True)
    if done.returncode != 0:
        print(done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
        raise SystemExit(f"{program} failed")
    return done.stdout


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(ids).logits.float()


def bytes_of(tokenizer, ids):
    """What ids stand for: Hugging Face's own decode replaces bytes that are not UTF-8."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printing]
    byte_of = {chr(b): b for b in printing} | {chr(256 + i): b for i, b in enumerate(others)}
    added = {t.content for t in tokenizer.get_added_tokens_decoder().values()}
    tokens = [tokenizer.id_to_token(i) for i in ids]
    return b"".join(t.encode() if t in added else bytes(byte_of[c] for c in t) for t in tokens)


def rounded(model, dtype):
    """Its weights alone: model.to(dtype) would round the tables of rotations as well."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype).float())
    return model


common = dict(vocab_size=707, attn_implementation="eager", bos_token_id=None, eos_token_id=None)
gpt2 = dict(n_positions=64, n_embd=48, n_layer=3, n_head=4, initializer_range=0.2, **common)
llama = dict(max_position_embeddings=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
             num_attention_heads=8, num_key_value_heads=2, initializer_range=0.2, **common)
llama3 = dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
MODELS = {
    "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(**gpt2)),
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(**llama)),
    "Llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**llama, tie_word_embeddings=True)),
    "Llama 3.1": lambda: LlamaForCausalLM(LlamaConfig(**llama, rope_parameters=llama3)),
}


def check_model(name, make, folder, dtype, **save):
    torch.manual_seed(len(name))
    model = make()
    theirs, ours = folder / "theirs", folder / "ours"
    model.save_pretrained(theirs, **save)
    for file in TOKENIZERS.joinpath("llama3").glob("tokenizer*"):
        shutil.copy(file, theirs)
    run("gpt2_export", "--model", theirs, "--out", ours, "--dtype", dtype, "--largest-file", "0.0001")
    again = AutoModelForCausalLM.from_pretrained(ours, attn_implementation="eager", dtype=torch.float32)
    ids = torch.randint(0, 700, (2, 64))
    if dtype != "f32":
        model = rounded(model, torch.bfloat16)
    expected, got = logits(model, ids), logits(again, ids)
    report(f"{name} there and back in {dtype}", torch.equal(expected, got),
           f"largest difference {(expected - got).abs().max():.1e} of logits up to {expected.abs().max():.2f}")

    # A greedy text: the way in, with our own forward pass.
    tokenizer = Tokenizer.from_file(str(theirs / "tokenizer.json"))
    prompt = "the loss of a step"
    start = tokenizer.encode(prompt).ids
    text = model.generate(torch.tensor([start]), max_new_tokens=30, do_sample=False, use_cache=True, pad_token_id=0)
    expected_text = bytes_of(tokenizer, text[0, len(start):].tolist())
    printed = run("gpt2_generate", "--model", ours, "--prompt", prompt, "--tokens", 30, "--temperature", 0)
    got_text = printed[len(prompt.encode()):].removesuffix(b"\n")
    report(f"{name} writes the same text", got_text == expected_text, repr(got_text[:40].decode(errors="replace")))


def check_trained(folder):
    corpus = folder / "corpus"
    corpus.write_text("".join(p.read_text() for p in sorted(ROOT.joinpath("docs").glob("*.md"))))
    for family in ("", "family=llama,kv_heads=2,"):
        run_folder, out = folder / f"run{len(family)}", folder / f"out{len(family)}"
        run("gpt2_prepare", "--text", corpus, "--vocab", 512, "--out", run_folder)
        run("gpt2_train", "--data", run_folder, "--out", run_folder, "--model",
            family + "layers=2,heads=4,width=64,context=64", "--steps", 60, "--lr", 0.01, "--progress", "none")
        run("gpt2_export", "--model", run_folder, "--out", out)
        model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
        prompt = "A token is"
        text = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=30, do_sample=False,
                              pad_token_id=0)
        printed = run("gpt2_generate", "--model", run_folder, "--prompt", prompt, "--tokens", 30, "--temperature", 0)
        expected = tokenizer.decode(text[0])
        report(f"trained here ({family or 'gpt2'}), the same text there", printed.decode().removesuffix("\n") == expected,
               repr(expected[:50]))

        # The loss over the held-out tokens, in windows of 64.
        measured = run("gpt2_evaluate", "--model", run_folder, "--data", run_folder, "--seq", 64).decode()
        ours = float(next(line.split()[1] for line in measured.splitlines() if line.startswith("loss")))
        raw = (run_folder / "validation.tokens").read_bytes()[64:]
        ids = torch.frombuffer(bytearray(raw), dtype=torch.int16).long()
        total, count = 0.0, 0
        for begin in range(0, len(ids) - 1, 64):
            window = ids[begin:begin + 65]
            out_logits = logits(model, window[None, :-1])[0]
            total += torch.nn.functional.cross_entropy(out_logits, window[1:], reduction="sum").item()
            count += len(window) - 1
        report(f"trained here ({family or 'gpt2'}), the same loss there", abs(total / count - ours) < 2e-6,
               f"{ours:.6f} and {total / count:.6f} over {count} tokens")

        # Ids of our own rules of cutting, as a regular expression there.
        texts = [c["text"] for c in json.loads((TOKENIZERS / "gpt2/ids.json").read_text())]
        same = all(tokenizer.decode(tokenizer(t).input_ids) == t for t in texts)
        report("our own tokenizer there: every text comes back", same, f"{len(texts)} texts")
        lines = [t for t in texts if t.strip() and "\n" not in t and "\r" not in t]
        (folder / "text").write_text("\n".join(lines * 3), newline="")
        run("gpt2_prepare", "--text", folder / "text", "--tokenizer", run_folder, "--out", folder / f"ids{len(family)}")
        ids = b"".join((folder / f"ids{len(family)}" / f"{part}.tokens").read_bytes()[64:]
                       for part in ("train", "validation"))
        whole = (folder / "text").read_bytes()
        # The text is cut in two where validation begins; so are its words.
        header = (folder / f"ids{len(family)}" / "train.tokens").read_bytes()[:64]
        split = int.from_bytes(header[40:48], "little")
        expected = [i for part in (whole[:split], whole[split:]) for i in tokenizer(part.decode()).input_ids]
        got = torch.frombuffer(bytearray(ids), dtype=torch.int16).tolist()
        report("our own tokenizer there: the same ids", got == expected, f"{len(got)} ids")


def check_bigger_start(folder):
    """gpt2_train --from-hf: the first loss is the loss of the weights."""
    torch.manual_seed(3)
    model = GPT2LMHeadModel(GPT2Config(**gpt2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    theirs = folder / "start"
    model.save_pretrained(theirs)
    shutil.copy(TOKENIZERS / "gpt2/tokenizer.json", theirs)
    run("gpt2_prepare", "--text", folder / "corpus", "--tokenizer", theirs, "--out", folder / "data")
    run("gpt2_train", "--data", folder / "data", "--out", folder / "tuned", "--from-hf", theirs, "--steps", 2, "--log",
        folder / "log", "--lr", 0.0, "--progress", "none", "--eval-tokens", 64)
    first, second = (json.loads(line)["loss"] for line in (folder / "log").read_text().splitlines())
    run("gpt2_export", "--model", folder / "tuned", "--out", folder / "same")
    again = AutoModelForCausalLM.from_pretrained(folder / "same", attn_implementation="eager")
    ids = torch.randint(0, 700, (1, 64))
    report("gpt2_train --from-hf, no step taken: the same logits", torch.equal(logits(model, ids), logits(again, ids)),
           f"losses {first:.4f}, {second:.4f}")


with tempfile.TemporaryDirectory() as temporary:
    temporary = Path(temporary)
    for number, (name, make) in enumerate(MODELS.items()):
        for dtype in ("f32", "bf16"):
            folder = temporary / f"{number}{dtype}"
            folder.mkdir()
            check_model(name, make, folder, dtype, **({"max_shard_size": "100KB"} if dtype == "bf16" else {}))
    check_trained(temporary)
    check_bigger_start(temporary)
    for name in ("gpt2", "llama3"):
        again = temporary / f"tokenizer-{name}"
        torch.manual_seed(1)
        model = GPT2LMHeadModel(GPT2Config(**gpt2))
        model.save_pretrained(again / "in")
        shutil.copy(TOKENIZERS / name / "tokenizer.json", again / "in")
        run("gpt2_export", "--model", again / "in", "--out", again / "out")
        saved = AutoTokenizer.from_pretrained(again / "out")
        cases = json.loads((TOKENIZERS / name / "ids.json").read_text())
        bad = [c["text"] for c in cases if saved(c["text"]).input_ids != c["ids"]]
        report(f"tokenizer {name} there and back", not bad, f"{len(cases)} texts; first: {bad[:1]}" if bad else f"{len(cases)} texts")
raise SystemExit(1 if failures else 0)
