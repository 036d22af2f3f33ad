"""Calls of Python functions with one framework, the same program for each; start-up does not count.

Arguments: what is measured, the framework, slots, where to write the figures (JSON), then what that needs:

noop CALLS CHUNK        a function that does nothing, over a range
single CALLS            one call after the other, each waited for
busy CALLS SECONDS      calls of so many seconds: how much of the slots' time is spent in the function
slow CALLS SECONDS      calls of 1 ms, the first of which takes so many seconds
arrays COUNT BYTES      NumPy arrays there and back
"""

import json
import sys
import time
from contextlib import contextmanager


def noop(x):
    return x


def increment(array):
    """In place where that is allowed, which spares a copy."""
    if array.flags.writeable:
        array += 1
        return array
    return array + 1


def work(seconds):
    """Waits busily for what is too short to sleep, and says how long it really took."""
    begun = now = time.perf_counter()
    if seconds > 0.01:
        time.sleep(seconds)
        return time.perf_counter() - begun
    end = begun + seconds
    while now < end:
        now = time.perf_counter()
    return now - begun


# --- frameworks: each yields what maps (a lazy iterable; results as they come) and what calls once -----


@contextmanager
def cortex(slots, chunk):
    import cortex

    with cortex.Client(slots=slots) as client:
        yield client.map, client.imap_unordered, lambda f, x: client.submit(f, x).result()


@contextmanager
def cluster(slots, chunk):
    """A server and a node, over TLS on loopback."""
    import cortex

    with cortex.LocalCluster(nodes=1, slots=slots, memory="4GB") as made, made.client as client:
        yield client.map, client.imap_unordered, lambda f, x: client.submit(f, x).result()


@contextmanager
def pool(slots, chunk):
    import multiprocessing

    with multiprocessing.Pool(slots) as made:

        def unordered(f, xs):
            return made.imap_unordered(f, xs, chunksize=chunk)

        yield (lambda f, xs: made.imap(f, xs, chunksize=chunk)), unordered, lambda f, x: made.apply(f, (x,))


@contextmanager
def executor(slots, chunk):
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(slots) as made:

        def mapped(f, xs):
            return made.map(f, xs, chunksize=chunk)

        yield mapped, mapped, lambda f, x: made.submit(f, x).result()


@contextmanager
def joblib(slots, chunk):
    from joblib import Parallel, delayed

    with Parallel(n_jobs=slots, backend="loky", return_as="generator") as made:

        def mapped(f, xs):
            return made(delayed(f)(x) for x in xs)

        yield mapped, mapped, lambda f, x: next(iter(mapped(f, [x])))


@contextmanager
def dask(slots, chunk):
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=slots, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
        ) as made,
        Client(made) as client,
    ):

        def mapped(f, xs):
            # its own way to send many at once: batches of what is mapped, and one gather
            return client.gather(client.map(f, list(xs), pure=False, batch_size=chunk))

        yield mapped, mapped, lambda f, x: client.submit(f, x, pure=False).result()


@contextmanager
def ray(slots, chunk):
    import ray

    ray.init(num_cpus=slots, include_dashboard=False, log_to_driver=False, logging_level="error")
    remote = {}

    def of(f):
        return remote.setdefault(f, ray.remote(f))

    def mapped(f, xs):
        f = of(f)
        return ray.get([f.remote(x) for x in xs])

    try:
        yield mapped, mapped, lambda f, x: ray.get(of(f).remote(x))
    finally:
        ray.shutdown()


# --- what is measured ---------------------------------------------------------------------------------


def warm_up(framework, function, argument, slots):
    """Every process has run something, and has what the function needs."""
    mapped, _, call = framework
    for _ in range(3):
        call(function, argument)
    list(mapped(function, [argument] * (20 * slots)))


def measure_noop(made, slots, calls):
    mapped, unordered, _ = made
    warm_up(made, noop, 1, slots)
    begun = time.perf_counter()
    count = total = 0
    for x in (mapped if sys.argv[2] in ("cortex", "cluster") else unordered)(noop, range(int(calls))):
        count += 1
        total += x
    seconds = time.perf_counter() - begun
    return {"calls": count, "total": total, "seconds": seconds}


def measure_single(made, slots, calls):
    call = made[2]
    warm_up(made, noop, 1, slots)
    taken, total = [], 0
    for x in range(int(calls)):
        begun = time.perf_counter()
        total += call(noop, x)
        taken.append(time.perf_counter() - begun)
    found = {"calls": len(taken), "total": total, "seconds": sum(taken)}
    taken.sort()
    return {**found, "median_s": taken[len(taken) // 2], "p99_s": taken[len(taken) * 99 // 100]}


def own_cost(argument):
    """Seconds of a call of `work` that it cannot see, to call it and to return: a bare loop has them too."""
    found = []
    count = max(3, min(5000, int(0.01 / argument)))
    for _ in range(5):
        begun = time.perf_counter()
        spent = sum([work(argument) for _ in range(count)])
        found.append((time.perf_counter() - begun - spent) / count)
    return min(found)


def measure_busy(made, slots, calls, seconds):
    _, unordered, _ = made
    warm_up(made, work, 0.0, slots)
    argument = float(seconds)
    own_s = own_cost(argument) if argument < 0.001 else 0.0
    begun = time.perf_counter()
    spent = list(unordered(work, (argument for _ in range(int(calls)))))
    elapsed = time.perf_counter() - begun
    return {
        "calls": len(spent),
        "least_s": min(spent),
        "seconds": elapsed,
        "own_s": own_s,
        "busy": (sum(spent) + own_s * len(spent)) / (elapsed * slots),
    }


def measure_slow(made, slots, calls, seconds):
    """`others_s`: until the last of the others was here; `ideal_s`: had every slot been busy until then."""
    _, unordered, _ = made
    warm_up(made, work, 0.0, slots)
    slow, count = float(seconds), int(calls)
    others_s = others = 0.0
    ended = 0
    begun = time.perf_counter()
    for spent in unordered(work, (slow if n == 0 else 0.001 for n in range(count))):
        ended += 1
        if spent < slow:
            others += spent
            others_s = time.perf_counter() - begun
    seconds = time.perf_counter() - begun
    rest = max(0.0, others - (slots - 1) * slow)
    ideal_s = others / (slots - 1) if others < (slots - 1) * slow else slow + rest / slots
    return {"calls": ended, "seconds": seconds, "others_s": others_s, "ideal_s": ideal_s}


def measure_arrays(made, slots, count, size):
    import numpy

    mapped, _, _ = made
    warm_up(made, increment, numpy.zeros(4), slots)
    count, length = int(count), int(size) // 8
    arguments = (numpy.full(length, float(n)) for n in range(count))
    begun = time.perf_counter()
    found = right = 0
    for n, array in enumerate(mapped(increment, arguments)):
        found += 1
        right += len(array) == length and bool((array[:: max(1, length // 1000)] == n + 1).all())
        array[0] = 0  # raises where a result cannot be written to
        del array
    seconds = time.perf_counter() - begun
    return {"calls": found, "right": right, "seconds": seconds, "bytes": 2 * count * length * 8}


def main(what, framework, slots, output, *arguments):
    frameworks = {each.__name__: each for each in (cortex, cluster, pool, executor, joblib, dask, ray)}
    chunk = 1
    if what == "noop":
        *arguments, chunk = arguments
    slots = int(slots)
    with frameworks[framework](slots, int(chunk)) as made:
        figures = globals()[f"measure_{what}"](made, slots, *arguments)
    with open(output, "w", encoding="utf-8") as file:
        json.dump(figures, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
