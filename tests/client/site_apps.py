# SPDX-License-Identifier: Apache-2.0
"""A client app that answers fast, slowly or not at all, as the file `behave` in the study's folder says. It runs in a real worker."""

import os
import signal
import time
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from common.protocol import Evaluated, Instruction, Update

app = ClientApp()


def _behave(context: Context) -> None:
    folder = Path(str(context.node_config["site-folder"]))
    (folder / "begun").write_text(str(os.getpid()))
    behaviour = (folder / "behave").read_text() if (folder / "behave").exists() else ""
    if behaviour.startswith("sleep"):
        time.sleep(float(behaviour.split()[1]))
    if behaviour == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "raise":
        raise ValueError("patient 42 at /data")


@app.train()
def train(message: Message, context: Context) -> Message:
    _behave(context)
    asked = Instruction.from_records(message.content)
    delta = {name: np.zeros_like(value) for name, value in asked.model.items()}
    return Message(Update(asked.run_id, asked.round, "north", delta).to_records(), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    _behave(context)
    asked = Instruction.from_records(message.content)
    return Message(Evaluated(asked.run_id, asked.round, "north").to_records(), reply_to=message)
