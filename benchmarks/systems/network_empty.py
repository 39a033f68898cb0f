"""Flower's own empty round, for `benchmarks/systems/network.py`: a ServerApp and a ClientApp that do nothing."""

import json
import os
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

app = ServerApp()
client = ClientApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    settings = json.loads(os.environ["FL_BENCHMARK"])
    while len(nodes := list(grid.get_node_ids())) < settings["sites"]:
        time.sleep(0.2)
    seconds = []
    for number in range(settings["rounds"]):
        content = RecordDict({"nothing": ConfigRecord({"round": number})})
        started = time.perf_counter()
        answers = list(grid.send_and_receive([Message(content, node, "train") for node in nodes], timeout=300))
        seconds.append(time.perf_counter() - started)
        assert len(answers) == len(nodes)
    Path(settings["result"]).write_text(json.dumps(seconds))


@client.train()
def train(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)
