"""The server under load: 200 chat requests at once over five adapters, against one adapter and one request at a time.

    python -m benchmarks.systems.serving --run last [--requests 200] [--tokens 48] [--json FILE]
        [--docs docs/serving.md]

Starts `serve` on a free port of the loopback interface and asks it with the openai client, greedily. Every answer is
compared with that of `generate` on the adapter alone, one prompt at a time. Ratios are of turns taken in alternation.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import httpx
import openai
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import put_table, write_json
from fl_lightning.config.parsing import parse_config
from fl_lightning.data.record_files import read_records
from fl_lightning.data.records import Turn
from fl_lightning.data.tokenization import encode_prompt
from fl_lightning.launch import reserve_port
from fl_lightning.modeling.cohort import LoraCohort
from fl_lightning.modeling.generation.generate import generate
from fl_lightning.modeling.lora import adapter_scaling
from fl_lightning.modeling.scaled_adapter import read_adapter
from fl_lightning.serving.engine import load_answering
from fl_lightning.storage.model_names import all_adapters
from fl_lightning.storage.run_folder import find_run_folder

Pairs = list[tuple[str, str]]
"""(model, question)."""
Answered = tuple[str, float]
"""(answer, seconds)."""
Measured = tuple[list[float], list[float], list[str]]
"""(seconds of each turn, latencies, answers)."""


def questions(count: int, root: Path) -> list[str]:
    """What held-out records ask."""
    found = [record[0].content for path in sorted(root.rglob("eval.jsonl")) for record in read_records(path)]
    return [found[i % len(found)][:400] for i in range(count)]


@contextmanager
def serving(folder: Path, log: Path, *options: str) -> Iterator[str]:
    """A server of a run, ready; its address."""
    holder, port = reserve_port()
    command = [sys.executable, "-m", "fl_lightning", "serve", "--run", str(folder), "--port", str(port), *options]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        while True:
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)
        holder.close()


async def ask(client: Any, model: str, text: str, tokens: int) -> Answered:
    """(answer, seconds)."""
    started = time.perf_counter()
    answer = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], temperature=0, max_tokens=tokens
    )
    return answer.choices[0].message.content, time.perf_counter() - started


async def together(client: Any, pairs: Pairs, tokens: int) -> tuple[list[Answered], float]:
    """All at once."""
    started = time.perf_counter()
    answers = await asyncio.gather(*(ask(client, model, text, tokens) for model, text in pairs))
    return answers, time.perf_counter() - started


async def adapter_by_adapter(client: Any, pairs: Pairs, tokens: int) -> tuple[list[Answered], float]:
    """All requests of one adapter at once, one adapter after the other."""
    started, answers = time.perf_counter(), {}
    for model in dict.fromkeys(model for model, _ in pairs):
        own = [i for i, (name, _) in enumerate(pairs) if name == model]
        done, _ = await together(client, [pairs[i] for i in own], tokens)
        answers.update(zip(own, done, strict=True))
    return [answers[i] for i in range(len(pairs))], time.perf_counter() - started


async def one_by_one(client: Any, pairs: Pairs, tokens: int) -> tuple[list[Answered], float]:
    """One request after the other."""
    started = time.perf_counter()
    answers = [await ask(client, model, text, tokens) for model, text in pairs]
    return answers, time.perf_counter() - started


def reference(folder: Path, pairs: Pairs, tokens: int) -> list[str]:
    """What each adapter says alone, prompt by prompt, without any of the serving's code."""
    answering = load_answering(parse_config(["--config", str(folder / "config.yaml")]))
    model, tokenizer = answering.model, answering.tokenizer
    scaling = adapter_scaling(model)
    folders = all_adapters(folder)
    cohort, answers = LoraCohort(model), {}
    for name in dict.fromkeys(name for name, _ in pairs):
        adapter = read_adapter(folders[name], answering.initial, scaling)
        cohort.load([adapter.state], "cpu", gains=[adapter.relative_scaling])
        with cohort.attached():
            cohort.set_single_client()
            for i in (i for i, (own, _) in enumerate(pairs) if own == name):
                prompt = torch.tensor(encode_prompt([Turn("user", pairs[i][1])], tokenizer))
                (ids,) = generate(model, [prompt], max_new_tokens=tokens, ends=[tokenizer.eos_token_id])
                answers[i] = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [answers[i] for i in range(len(pairs))]


async def measure(address: str, pairs: Pairs, tokens: int, repeats: int) -> dict[str, Measured]:
    """{way: (seconds of each turn, latencies, answers)}."""
    client = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=600)
    ways = {"all at once": together, "adapter by adapter": adapter_by_adapter, "one by one": one_by_one}
    found: dict[str, Measured] = {name: ([], [], []) for name in ways}
    await together(client, pairs[:10], 4)
    for _ in range(repeats):
        for name, way in ways.items():
            answers, seconds = await way(client, pairs, tokens)
            found[name][0].append(seconds)
            found[name][1].extend(seconds for _, seconds in answers)
            found[name][2].extend(text for text, _ in answers)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="last")
    parser.add_argument("--output", default="lightning_logs")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--adapters", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("lightning_logs/benchmarks/serving.json"))
    parser.add_argument("--docs", type=Path, help="a page into which the table is written")
    args = parser.parse_args()
    folder = find_run_folder(args.run, Path(args.output))
    config = parse_config(["--config", str(folder / "config.yaml")])
    from fl_lightning.bundled import resolve

    names = list(all_adapters(folder))[: args.adapters]
    texts = questions(args.requests, resolve(config.data.root))
    pairs = [(names[i % len(names)], text) for i, text in enumerate(texts)]
    args.json.parent.mkdir(parents=True, exist_ok=True)
    with serving(folder, args.json.with_suffix(".log"), "--max-requests", str(args.requests + 8)) as address:
        found = asyncio.run(measure(address, pairs, args.tokens, args.repeats))
    expected = reference(folder, pairs, args.tokens) * args.repeats
    columns = ("way", "requests/s", "against one adapter at a time", "p50, s", "p99, s", "answers as alone")
    table = Table(*columns, title=f"{args.requests} requests, {len(names)} adapters, up to {args.tokens} tokens")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    base = found["adapter by adapter"][0]
    rows = {}
    for name, (seconds, latencies, answers) in found.items():
        ordered = sorted(latencies)
        equal = sum(a == b for a, b in zip(answers, expected, strict=True))
        rows[name] = {
            "requests_per_second": args.requests / statistics.median(seconds),
            "p50": ordered[len(ordered) // 2],
            "p99": ordered[int(0.99 * (len(ordered) - 1))],
            "equal": equal,
            "answers": len(answers),
            "ratio": statistics.median(b / s for b, s in zip(base, seconds, strict=True)),
        }
        row = rows[name]
        cells = [
            name,
            f"{row['requests_per_second']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['p50']:.2f}",
            f"{row['p99']:.2f}",
            f"{equal} of {len(answers)}",
        ]
        table.add_row(*cells)
        lines.append(f"| {' | '.join(cells)} |")
    Console().print(table)
    write_json(args.json, {"requests": args.requests, "adapters": names, "tokens": args.tokens, "ways": rows})
    if args.docs is not None:
        put_table(args.docs, "serving", "\n".join(lines))


if __name__ == "__main__":
    main()
