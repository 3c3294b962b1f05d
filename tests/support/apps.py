# SPDX-License-Identifier: Apache-2.0
"""Client apps that behave as a test asks them to; they run in real worker processes."""

import json
import os
import signal
import time

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from common.evaluation_plan import evaluation_plan
from common.protocol import Evaluated, Instruction, Refusal, RefusalCode, Update
from common.study import Study

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    facts = message.content.config_records["ask"]
    time.sleep(float(facts.get("sleep", 0.0)))
    if facts.get("raise"):
        raise ValueError("patient 42 at /data")
    if facts.get("die") and context.node_config["partition-id"] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    seen = int(context.state.config_records.get("memory", ConfigRecord({"seen": 0}))["seen"]) + 1
    context.state["memory"] = ConfigRecord({"seen": seen})
    reply = {"partition": context.node_config["partition-id"], "seen": seen, "process": os.getpid(), "echo": facts.get("echo", "")}
    return Message(RecordDict({"reply": ConfigRecord(reply)}), reply_to=message)


def spoiled_update(instruction: Instruction, site: str, behaviour: str) -> RecordDict:
    """An update as it should be, or spoiled."""
    values = {"nan": float("nan"), "inf": float("inf"), "huge": 1e9, "1e30": 1e30, "long": 2e3}
    delta = {name: np.full_like(array, values.get(behaviour, len(site))) for name, array in instruction.model.items()}
    first = next(iter(delta))
    if behaviour == "shape":
        delta = {name: array.reshape(-1)[:1] for name, array in delta.items()}
    if behaviour == "names":
        delta = {f"x.{name}": array for name, array in delta.items()}
    if behaviour in ("float64", "float16", ">f4", "int32"):
        delta[first] = delta[first].astype(behaviour)
    if behaviour == "extra":
        delta["extra"] = np.ones(1, np.float32)
    if behaviour == "missing":
        del delta[first]
    round_number = instruction.round - 1 if behaviour == "replay" else instruction.round
    run_id = "0" * 32 if behaviour == "other run" else instruction.run_id
    records = Update(run_id, round_number, site, delta).to_records()
    if behaviour == "examples":
        records["metrics"] = MetricRecord({"num-examples": 1000})
    if behaviour == "float examples":
        records["metrics"] = MetricRecord({"num-examples": 1.0})
    if behaviour == "loss":
        records["metrics"] = MetricRecord({"num-examples": 1, "loss": 0.5})
    if behaviour == "no metrics":
        del records["metrics"]
    return records


sites_app = ClientApp()


@sites_app.train()
def train_site(message: Message, context: Context) -> Message:
    """Sites `a`, `bb`, `ccc`… whose update is their name's length everywhere, unless MISBEHAVE says otherwise."""
    number = int(context.node_config["partition-id"])
    behaviour = json.loads(os.environ.get("MISBEHAVE", "{}")).get(str(number), "")
    site = "abcdefgh"[number] * (number + 1)
    if behaviour == "silent":
        time.sleep(60)
    if behaviour == "raise":
        raise ValueError("patient 42 at /data")
    if behaviour == "stranger":
        return Message(RecordDict({"reply": ConfigRecord({"hello": 1})}), reply_to=message)
    if behaviour == "refuse":
        return Message(Refusal(RefusalCode.BUDGET_EXHAUSTED, site).to_records(), reply_to=message)
    if behaviour == "impostor":
        site = "a"
    return Message(spoiled_update(Instruction.from_records(message.content), site, behaviour), reply_to=message)


@sites_app.evaluate()
def evaluate_site(message: Message, context: Context) -> Message:
    """Where the study plans a private evaluation: 100 · (1 + number) patients of each label, label 0 in bin 0 and label 1 in the last."""
    instruction = Instruction.from_records(message.content)
    number = int(context.node_config["partition-id"])
    behaviour = json.loads(os.environ.get("MISBEHAVE", "{}")).get(str(number), "")
    plan = evaluation_plan(Study.from_canonical_json(instruction.study))
    counts = None
    if plan is not None and behaviour != "no counts":
        counts = np.zeros(plan.shape, np.int64)
        counts[:, 0, 0] = counts[:, 1, -1] = 100 * (1 + number)
        counts = counts[:, :, 1:] if behaviour == "few counts" else counts
    return Message(
        Evaluated(instruction.run_id, instruction.round, "abcdefgh"[number] * (number + 1), counts).to_records(), reply_to=message
    )
