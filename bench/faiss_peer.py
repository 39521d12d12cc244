#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What Faiss with SIMD takes for bench_next's shapes: the fair peer of the CPU scan.

Debian's Faiss is built without SIMD; the wheels of PyPI choose AVX2 or AVX-512 at run time:

    python3 -m venv build/faiss
    build/faiss/bin/pip install faiss-cpu==1.15.1 numpy==2.4.6
    build/faiss/bin/python bench/faiss_peer.py

32 heads, each an index of its own over 31744 keys (32000 less sink and window) of 128 normal
components, inner product, a query a head, 128 best. A line is `faiss/SHAPE/INDEX/HOW median_us=..
least_us=..`, microseconds for all 32 heads, of `--passes` passes. HOW tells how the heads come
to two cores, because that is the caller's to choose: `sequential`, with Faiss's own threads at 2
(it has no use for them with one query an index), and `two_threads`, 16 heads each. What is in
Faiss's favour: a pass of two threads takes what the slower one's own 16 searches take, so waiting
for each other is not counted; nothing is encoded and no list written. What is not: a search is
called from Python, as `call` (the same over indexes of 32 keys) says.
"""
import argparse
import os
import threading
import time

import faiss
import numpy as np

HEADS, KEYS, DIM, BEST = 32, 32000 - 256, 128, 128
THREADS = 2


def split(work):
    """Runs work(thread) in each of THREADS threads."""
    threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def pq_indexes(m, bits, keys=KEYS):
    """An IndexPQ a head: exact ADC. The codebook is the first head's, trained on few keys (a search
    costs the same whatever its quality); keys and codes are a head's own."""
    first = faiss.IndexPQ(DIM, m, bits, faiss.METRIC_INNER_PRODUCT)
    first.train(np.random.default_rng(1).standard_normal((64 << bits, DIM), dtype=np.float32))
    indexes = [faiss.clone_index(first) for _ in range(HEADS)]

    def fill(thread):
        faiss.omp_set_num_threads(1)
        for head in range(thread, HEADS, THREADS):
            random = np.random.default_rng(2 + head)
            indexes[head].add(random.standard_normal((keys, DIM), dtype=np.float32))

    split(fill)
    return indexes


def searches(indexes):
    """The heads' searches as calls without arguments, and the labels they write."""
    queries = np.random.default_rng(0).standard_normal((HEADS, DIM), dtype=np.float32)
    scores = np.empty((HEADS, BEST), np.float32)
    labels = np.empty((HEADS, BEST), np.int64)

    def call(head):
        # search_c() is the library's function; search() looks at its arguments in Python first.
        run, query = indexes[head].search_c, faiss.swig_ptr(queries[head])
        score, label = faiss.swig_ptr(scores[head]), faiss.swig_ptr(labels[head])
        # The arrays are kept with it: pointers do not own them.
        return lambda arrays=(queries, scores, labels): run(1, query, BEST, score, label)

    return [call(head) for head in range(HEADS)], labels


def sequential(calls, passes):
    faiss.omp_set_num_threads(THREADS)
    times = []
    for _ in range(passes):
        begin = time.perf_counter()
        for call in calls:
            call()
        times.append(time.perf_counter() - begin)
    return times


def two_threads(calls, passes):
    times = np.empty((THREADS, passes))
    together = threading.Barrier(THREADS)

    def work(thread):
        faiss.omp_set_num_threads(1)
        own = calls[thread::THREADS]
        for i in range(passes):
            together.wait()
            begin = time.perf_counter()
            for call in own:
                call()
            times[thread, i] = time.perf_counter() - begin

    split(work)
    return times.max(axis=0)


def measure(name, indexes, passes):
    calls, labels = searches(indexes)
    for how in (sequential, two_threads):
        how(calls, 3)
        times = np.array(how(calls, passes)) * 1e6
        print(f"faiss/{name}/{how.__name__} median_us={np.median(times):.1f} "
              f"least_us={times.min():.1f}", flush=True)
    return labels


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--passes", type=int, default=60)
    parser.add_argument("--priority", type=int, default=0,
                        help="measure under SCHED_RR with this priority (1..99; root)")
    options = parser.parse_args()
    if options.passes < 1:
        parser.error(f"--passes is {options.passes}, must be at least 1")

    print(f"# Faiss {faiss.__version__}, {faiss.get_compile_options().strip()}; "
          f"loaded {faiss.swigfaiss.__name__}, SIMD level {faiss.SIMDConfig.get_level_name()}")
    shapes = {}
    shapes["m2_b6/IndexPQ"] = pq_indexes(2, 6)
    for m in (8, 16):
        exact = pq_indexes(m, 4)
        shapes[f"m{m}_b4/IndexPQ"] = exact
        # How many keys a block of the layout has is the caller's to choose as well.
        for block in (32, 64, 128):
            shapes[f"m{m}_b4/IndexPQFastScan_{block}"] = [
                faiss.IndexPQFastScan(index, block) for index in exact]
    few = [faiss.IndexPQFastScan(index, 32) for index in pq_indexes(8, 4, keys=32)]

    if options.priority:
        # Before any thread that measures: they inherit it.
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(options.priority))
    measure("call", few, options.passes)
    exact = None
    for name, indexes in shapes.items():
        # Exact ADC takes many times as long: a third of the passes do.
        slow = "FastScan" not in name
        labels = measure(name, indexes, max(1, options.passes // (3 if slow else 1)))
        if slow:
            exact = labels
        elif name.endswith("_32"):
            # The larger blocks find the same.
            common = np.mean([len(np.intersect1d(a, b)) for a, b in zip(exact, labels)]) / BEST
            print(f"# {name[:-3]}: {common:.4f} of its keys are among exact ADC's best {BEST}")


if __name__ == "__main__":
    main()
