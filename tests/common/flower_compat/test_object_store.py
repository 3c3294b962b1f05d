# SPDX-License-Identifier: Apache-2.0
"""Flower's object store with large objects in files: as Flower's own, and nothing torn or left over is ever handed out."""

import hashlib
import resource
import threading
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import UnexpectedObjectContentError, get_all_nested_objects, get_object_tree
from flwr.supercore.object_store.object_store import NoObjectInStoreError
from sqlalchemy import event

from common.flower_compat.large_objects import IN_A_FILE, LARGE_BYTES, objects_folder, write_object
from common.flower_compat.object_store import FileObjectStore

RUN = 1 << 63
SIZE = 1 << 16


def record(numbers: int = SIZE, seed: int = 0) -> tuple[ObjectTree, dict[str, bytes]]:
    """A record with one tensor: its tree and its objects, of which the tensor's bytes are large."""
    numbers_of = np.random.default_rng(seed).random(numbers)
    made = ArrayRecord({"weight": Array(numbers_of)})
    return get_object_tree(made), {name: one.deflate() for name, one in get_all_nested_objects(made).items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "superlink.sqlite"


def opened(path: Path) -> FileObjectStore:
    store = FileObjectStore(str(path))
    store.open()
    return store


def files(path: Path) -> dict[str, int]:
    return {one.name: one.stat().st_size for one in objects_folder(path).iterdir()}


def test_objects_come_back_and_large_ones_are_files(path: Path) -> None:
    store, (tree, objects) = opened(path), record()
    assert set(store.preregister(RUN, tree)) == set(objects)
    assert {store.get(name) for name in objects} == {b""}, "announced, and not there yet"
    for name, content in objects.items():
        store.put(name, content)
    assert {name: store.get(name) for name in objects} == objects
    assert files(path) == {name: len(content) for name, content in objects.items() if len(content) >= LARGE_BYTES}
    assert files(path), "the tensor's bytes should be in a file"
    assert max(objects.values(), key=len) not in path.read_bytes()
    assert store.get("0" * 64) is None


def test_another_process_finds_them_again(path: Path) -> None:
    store, (tree, objects) = opened(path), record()
    store.preregister(RUN, tree)
    for name, content in objects.items():
        store.put(name, content)
    again = opened(path)
    assert {name: again.get(name) for name in objects} == objects


def test_what_is_not_what_its_name_says_is_refused(path: Path) -> None:
    store, (tree, objects) = opened(path), record()
    store.preregister(RUN, tree)
    name = max(objects, key=lambda one: len(objects[one]))
    with pytest.raises(ValueError, match="does not match"):
        store.put(name, objects[name][:-1] + bytes([objects[name][-1] ^ 1]))
    assert store.get(name) == b"" and files(path) == {}


def test_what_was_not_announced_is_refused(path: Path) -> None:
    store, (_, objects) = opened(path), record()
    name = max(objects, key=lambda one: len(objects[one]))
    with pytest.raises(NoObjectInStoreError):
        store.put(name, objects[name])
    assert opened(path).get(name) is None and files(path) == {}, "a file that nobody announced goes at the next start"


def test_forgotten_objects_leave_no_file(path: Path) -> None:
    store = opened(path)
    (one, first), (two, second) = record(seed=1), record(seed=2)
    for tree, objects in ((one, first), (two, second)):
        store.preregister(RUN, tree)
        for name, content in objects.items():
            store.put(name, content)
    assert set(files(path)) == set(first) | set(second)
    store.delete(one.object_id)
    assert set(files(path)) == set(second)
    store.delete_objects_in_run(RUN)
    assert files(path) == {}


def test_an_object_that_another_message_needs_stays(path: Path) -> None:
    store, (tree, objects) = opened(path), record()
    (shared,) = list(tree.children)
    other = ObjectTree(object_id="ab" * 32, children=[shared])
    for one in (tree, other):
        store.preregister(RUN, one)
    for name, content in objects.items():
        store.put(name, content)
    store.delete(tree.object_id)
    large = max(objects, key=lambda name: len(objects[name]))
    assert store.get(large) == objects[large]


def test_a_transaction_that_is_undone_leaves_the_file(path: Path) -> None:
    store, (tree, objects) = opened(path), record()
    store.preregister(RUN, tree)
    for name, content in objects.items():
        store.put(name, content)
    with pytest.raises(RuntimeError), store.session():
        store.delete(tree.object_id)
        raise RuntimeError("the rest of the transaction failed")
    assert {name: store.get(name) for name in objects} == objects


def test_an_object_that_comes_again_while_it_is_forgotten_stays(path: Path) -> None:
    """Another site's message is written between the end of the transaction and the removal of the file."""
    store, (tree, objects) = opened(path), record()
    store.preregister(RUN, tree)
    for name, content in objects.items():
        store.put(name, content)
    other = opened(path)
    with store.session() as session:

        def comes_again() -> None:
            other.preregister(RUN, tree)
            for name, content in objects.items():
                other.put(name, content)

        def elsewhere(_: object) -> None:
            thread = threading.Thread(target=comes_again)
            thread.start()
            thread.join()

        event.listen(session, "after_commit", elsewhere, once=True)
        store.delete(tree.object_id)
    assert {name: store.get(name) for name in objects} == objects


def test_a_torn_file_is_never_handed_out(path: Path) -> None:
    store, (tree, objects) = opened(path), record()
    store.preregister(RUN, tree)
    for name, content in objects.items():
        store.put(name, content)
    torn = max(objects, key=lambda name: len(objects[name]))
    file = objects_folder(path) / torn
    file.write_bytes(objects[torn][:-100])
    again = opened(path)
    assert again.get(torn) == b"" and torn not in files(path)
    again.put(torn, objects[torn])
    assert again.get(torn) == objects[torn]


def test_a_full_disk_leaves_nothing_half_written(path: Path) -> None:
    store, (tree, objects) = opened(path), record(16 * SIZE)
    store.preregister(RUN, tree)
    large = max(objects, key=lambda name: len(objects[name]))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * SIZE, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            store.put(large, objects[large])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.get(large) == b"" and files(path) == {}


def test_the_folder_is_private(path: Path) -> None:
    opened(path)
    assert objects_folder(path).stat().st_mode & 0o777 == 0o700


def test_an_object_that_one_of_our_processes_put_into_its_file_is_taken(path: Path) -> None:
    store, (tree, objects) = opened(path), record()
    store.preregister(RUN, tree)
    name = max(objects, key=lambda one: len(objects[one]))
    with pytest.raises(ValueError, match="no such file"):
        store.put(name, IN_A_FILE)
    write_object(objects_folder(path), name, objects[name])
    assert store.get(name) == b"", "it is there when the database says so"
    store.put(name, IN_A_FILE)
    assert store.get(name) == objects[name]


def test_a_file_that_is_no_object_or_was_not_announced_is_not_taken(path: Path) -> None:
    store, (tree, objects) = opened(path), record()
    name = max(objects, key=lambda one: len(objects[one]))
    write_object(objects_folder(path), name, objects[name])
    with pytest.raises(NoObjectInStoreError):
        store.put(name, IN_A_FILE)
    store.preregister(RUN, tree)
    (objects_folder(path) / name).write_bytes(b"no object" * SIZE)
    with pytest.raises(UnexpectedObjectContentError):
        store.put(name, IN_A_FILE)
    assert store.get(name) == b""


def test_a_file_is_written_whole_and_only_under_its_own_name(tmp_path: Path) -> None:
    content = b"a" * SIZE
    name = hashlib.sha256(content).hexdigest()
    write_object(tmp_path, name, content)
    with pytest.raises(ValueError, match="does not match"):
        write_object(tmp_path, "0" * 64, content)
    with pytest.raises(OSError):
        write_object(tmp_path / "absent", name, content)
    assert [one.name for one in tmp_path.iterdir()] == [name]
