# SPDX-License-Identifier: Apache-2.0
"""Many files through worker processes, in the order in which they were given, with a bounded number in flight.

A file at which a worker dies (a codec that crashes, memory that is not there) is tried once more alone; if it dies again, the file is
refused by name, and the others go on.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from client.cohorts.ingest import Ingested, PixelSettings, ingest, refusal, start_worker
from client.cohorts.sources import SourceFile
from common.errors import WardroundError

_IN_FLIGHT_A_WORKER = 8
Outcome = tuple[SourceFile, Ingested]


def ingest_all(files: Iterable[SourceFile], settings: PixelSettings, workers: int) -> Generator[Outcome, None, None]:
    """Each file with what became of it, in order. Closing the generator ends the workers."""
    remaining = iter(files)
    while True:
        in_flight = yield from _until_broken(remaining, settings, workers)
        if not in_flight:
            return
        yield from _one_by_one(in_flight, settings)


def _until_broken(files: Iterator[SourceFile], settings: PixelSettings, workers: int) -> Generator[Outcome, None, list[SourceFile]]:
    """Go through `files` until all are done (returns nothing) or a worker died (returns those that were in flight)."""
    waiting: deque[tuple[SourceFile, Future[Ingested]]] = deque()
    pool = _pool(workers)
    try:
        while True:
            _fill(waiting, files, pool, settings, workers * _IN_FLIGHT_A_WORKER)
            if not waiting:
                return []
            source, future = waiting[0]
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                return [one for one, _ in waiting]
            waiting.popleft()
            yield source, _answer(source, future, error)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _fill(
    waiting: deque[tuple[SourceFile, Future[Ingested]]],
    files: Iterator[SourceFile],
    pool: ProcessPoolExecutor,
    settings: PixelSettings,
    most: int,
) -> None:
    """Submit until `most` are in flight. A pool that broke in the meantime takes nothing more; its first future says so."""
    while len(waiting) < most:
        source = next(files, None)
        if source is None:
            return
        try:
            waiting.append((source, pool.submit(ingest, source.name, source.path, settings)))
        except BrokenProcessPool as error:
            broken: Future[Ingested] = Future()
            broken.set_exception(error)
            waiting.append((source, broken))
            return


def _answer(source: SourceFile, future: Future[Ingested], error: BaseException | None) -> Ingested:
    """What a worker found; a fault of the decoder in one file costs that file."""
    if error is None:
        return future.result()
    return Ingested(refused=refusal(source.name, f"its decoder failed ({type(error).__name__}); export the file again, or take it out"))


def _one_by_one(files: Iterable[SourceFile], settings: PixelSettings) -> Iterator[Outcome]:
    """Each file with nothing else in flight, so that a worker that dies shows at which file."""
    remaining = deque(files)
    while remaining:
        with _pool(1) as pool:
            _check_alive(pool)
            while remaining:
                source = remaining.popleft()
                future = pool.submit(ingest, source.name, source.path, settings)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    break
                yield source, _answer(source, future, error)
            else:
                return
        text = "the decoder died at this file, twice; it is damaged or too large: take it out"
        yield source, Ingested(refused=refusal(source.name, text), died=True)


def _check_alive(pool: ProcessPoolExecutor) -> None:
    """Raise WardroundError when processes die whatever they do: then no file is to blame."""
    if pool.submit(os.getpid).exception() is not None:
        raise WardroundError(
            "no process for decoding can be started; is there enough memory? What is decoded is kept: run the command again"
        )


def _pool(workers: int) -> ProcessPoolExecutor:
    """Workers forked from a process that has loaded the decoders and nothing else, unless one with more is there already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["client.cohorts.ingest"])
    return ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker)
