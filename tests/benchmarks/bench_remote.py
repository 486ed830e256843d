"""How fast does training get its samples from a store, against the same files on the disk? Four workers, samples of 8,192 tokens.

The store is moto's S3 behind a proxy that answers each request for a shard 20 ms late; both run in a process of their own. The
first pass fetches every block; from the second on the reader is ahead, and what remains is its own work: finding, opening and
checking blocks. Passes over the disk and over the store alternate. Their CPU time is compared, of this process and the workers
together, since workers do nothing but this work, and other programs of the machine disturb it less than the clock.

    python -m tests.benchmarks bench_remote
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from btlm_train.data import GptHDF5MapDataProcessor
from tests.benchmarks.bench_reader import Variant, sample_tokens, write
from tests.s3_proxy import Proxy

ROUNDS = 5
WORKERS = 4
LENGTH = 8192
SAMPLES = 8192  # of a timed pass: eight times the data
LATENCY = 0.02  # seconds
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def _serve(folder: Path, sending: Connection) -> None:
    """A store with the shards of `folder`, until the other side closes."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    import boto3

    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="corpus")
    for path in sorted(folder.iterdir()):
        client.put_object(Bucket="corpus", Key=f"train/{path.name}", Body=path.read_bytes())
    with Proxy(f"http://{host}:{port}") as proxy:
        proxy.faults.latency = LATENCY
        sending.send(proxy.url)
        while sending.recv():
            sending.send(len(proxy.faults.seen))
    server.stop()


@contextlib.contextmanager
def store(folder: Path) -> Iterator[Connection]:
    """A connection to the store's process: send True for the number of requests so far. The client's settings are set."""
    ours, theirs = multiprocessing.Pipe()
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(folder, theirs), daemon=True)
    process.start()
    try:
        os.environ["AWS_ENDPOINT_URL"] = ours.recv()
        yield ours
    finally:
        ours.send(False)
        process.join()
        os.environ.clear()
        os.environ.update(before)


def cpu_seconds() -> float:
    """Of this process and of all its children that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def one_pass(
    data_dir: str, cache: Path, workers: int, shuffle: bool, num_samples: int | None = None
) -> tuple[float, float, int, int]:
    """CPU seconds, seconds, samples, and a checksum of the labels, of an epoch with workers of its own."""
    config = {"data_dir": data_dir, "batch_size": 8, "cache_dir": str(cache), "num_samples": num_samples}
    if workers:
        config |= {"num_workers": workers, "persistent_workers": False}
    processor = GptHDF5MapDataProcessor({**config, "shuffle": shuffle})
    loader = processor.create_dataloader()
    begin, cpu, samples, total = time.perf_counter(), cpu_seconds(), 0, 0
    for batch in loader:
        samples += len(batch["labels"])
        total += int(batch["labels"][:, ::97].sum())
    return cpu_seconds() - cpu, time.perf_counter() - begin, samples, total


def measure(rounds: int = ROUNDS, workers: int = WORKERS) -> Iterator[dict[str, Any]]:
    """In order and shuffled: the first pass against the disk by the clock, and what is ahead by CPU time."""
    with tempfile.TemporaryDirectory(prefix="btlm-bench-") as name:
        folder = Path(name) / "train"
        write(folder, sample_tokens(), Variant("", LENGTH))
        with store(folder) as asked:
            for shuffle in (False, True):
                what = "shuffled" if shuffle else "in order"
                cache = Path(name) / what
                far = ("s3://corpus/train", cache, workers, shuffle)
                near = (str(folder), cache, workers, shuffle)
                asked.send(True)
                before = asked.recv()
                _, first, samples, _ = one_pass(*far)
                asked.send(True)
                requests = asked.recv() - before
                pairs = []
                for _ in range(rounds):
                    here, there = (one_pass(*place, num_samples=SAMPLES) for place in (near, far))
                    assert here[2:] == there[2:], "both must give the same labels"
                    pairs.append((here, there))
                asked.send(True)
                assert asked.recv() - before - requests <= 3 * 8 * rounds, "only opening asks the store again"
                local = statistics.median(SAMPLES / here[0] for here, _ in pairs)
                remote = statistics.median(SAMPLES / there[0] for _, there in pairs)
                clock = statistics.median(here[1] / there[1] for here, there in pairs)
                yield {
                    "name": f"samples of 8,192 from S3, {what}, once ahead",
                    "ours": round(remote),
                    "theirs": round(local),
                    "ratio": statistics.median(here[0] / there[0] for here, there in pairs),
                    "unit": "samples/CPU s",
                    "budget": ">= 0.9",
                    "by the clock": clock,
                    "first pass": f"{samples / first:.0f} samples/s, {requests} requests of 20 ms",
                }


def run() -> list[dict[str, Any]]:
    return list(measure())


if __name__ == "__main__":
    for row in run():
        print(row)
