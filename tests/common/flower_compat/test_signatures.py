# SPDX-License-Identifier: Apache-2.0
"""Every private piece of flwr that we use, pinned: an upgrade that changes one fails here and not at a hospital."""

import inspect
import subprocess
import sys

import flwr
from flwr.app import Context, Message, RecordDict
from flwr.common import serde
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.simulation.run_simulation import _run_simulation
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supercore.telemetry import EventType

from common.flower_compat import identity, messages


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_pinned_version() -> None:
    assert flwr.__version__ == "1.41.0"


def test_signatures() -> None:
    assert parameters(serde.message_to_proto) == ["message"]
    assert parameters(serde.message_from_proto) == ["message_proto"]
    assert parameters(serde.context_to_proto) == ["context"]
    assert parameters(serde.context_from_proto) == ["context_proto"]
    assert parameters(Run.create_empty) == ["run_id"]
    assert parameters(Context) == ["run_id", "node_id", "node_config", "state", "run_config", "series_id"]
    assert parameters(_run_simulation) == [
        "num_supernodes", "exit_event", "client_app", "server_app", "backend_name", "backend_config", "client_app_attr", "server_app_attr",
        "server_app_context", "app_dir", "run", "enable_tf_gpu_growth", "verbose_logging", "is_app", "metrics",
    ]  # fmt: skip
    assert {"run_id", "primary_task_id", "federation_id"} <= set(Run.__dataclass_fields__)
    assert EventType.PYTHON_API_RUN_SIMULATION_LEAVE is not None
    assert ErrorCode.CLIENT_APP_RAISED_EXCEPTION == messages.APP_RAISED


def test_the_grid_that_we_implement() -> None:
    assert Grid.__abstractmethods__ == {
        "set_run", "run", "create_message", "get_node_ids", "push_messages", "pull_messages", "send_and_receive",
    }  # fmt: skip
    assert {"node_id", "name", "status"} <= set(NodeInfo.DESCRIPTOR.fields_by_name)


def test_the_identity_is_stamped_on_messages() -> None:
    identity.assume_server_identity(7)
    message = Message(RecordDict(), 1001, "train")
    assert (message.metadata.run_id, message.metadata.src_node_id) == (7, 1)
    assert (TaskIdentity.run_id, TaskIdentity.task_id) == (7, 1)


def test_messages_and_contexts_survive_as_bytes() -> None:
    identity.assume_server_identity(7)
    message = Message(RecordDict(), 1001, "train", group_id="3")
    name = messages.give_message_id(message)
    again = messages.message_from_bytes(messages.message_to_bytes(message))
    assert (again.metadata.message_id, again.metadata.group_id, again.metadata.dst_node_id) == (name, "3", 1001)
    context = Context(7, 1001, {"partition-id": 2}, RecordDict(), {})
    assert messages.context_from_bytes(messages.context_to_bytes(context)).node_config == {"partition-id": 2}
    assert ProtoMessage.FromString(messages.message_to_bytes(message)).metadata.run_id == 7
    assert ProtoContext.FromString(messages.context_to_bytes(context)).node_id == 1001


def test_a_hospital_loads_no_simulation_code() -> None:
    script = (
        "import sys; import common.flower_compat.identity, common.flower_compat.messages, client.app, client.worker; "
        "print([m for m in ('ray', 'torch', 'opacus', 'flwr.simulation', 'flwr.cli.app') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
