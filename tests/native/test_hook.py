"""The allocation hook with real torch and vLLM libraries; each case in a process of its own, for it is for ever."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]

PRELUDE = """
    import gc
    import torch
    from native import _native
    from native._native import Arena, activate, hooked_libraries, install_hook, open_driver

    MIB = 1 << 20
    driver = open_driver("host")

    def arena_of(size, hint=0):
        chunk = 32 * MIB
        base = driver.reserve(size, hint)
        driver.map_many([(base + at, driver.create(chunk)) for at in range(0, size, chunk)])
        return Arena(base, size, chunk, size)

    def inside(tensor, arena):
        return arena.base <= tensor.data_ptr() < arena.base + arena.capacity
"""


def in_process(code: str, *, fails: bool = False) -> str:
    script = textwrap.dedent(PRELUDE) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=110, cwd=ROOT)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def test_tensors_of_a_model_land_in_the_arena_and_leave_it() -> None:
    in_process(
        """
        slots = install_hook()
        assert slots >= 4, slots
        assert install_hook() == slots, "installing again changes nothing"
        names = {path.rsplit("/", 1)[1] for path, _ in hooked_libraries()}
        assert {"libc10.so", "libtorch_cpu.so"} <= names, names
        assert sum(count for _, count in hooked_libraries()) == slots

        arena = arena_of(256 * MIB)
        outside = torch.ones(MIB)
        activate(arena)
        model = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(16)])
        activate(None)
        later = torch.ones(MIB)

        weights = [p for p in model.parameters()]
        total = sum(p.nbytes for p in weights)
        landed = sum(p.nbytes for p in weights if inside(p, arena))
        assert landed >= 0.99 * total, (landed, total)
        assert total * 0.99 <= arena.live_bytes <= total * 1.01, (arena.live_bytes, total)
        assert not inside(outside, arena) and not inside(later, arena)
        small = [p for p in weights if p.nbytes < 65536]
        assert small and not any(inside(p, arena) for p in small)
        assert all(inside(p, arena) for p in weights if p.nbytes >= 65536)
        assert arena.spilled_bytes == 0

        with torch.no_grad():
            before = model(torch.ones(4, 1024))
            assert torch.equal(before, model(torch.ones(4, 1024)))
        del model, weights, small
        gc.collect()
        assert arena.live_bytes == 0, arena.blocks()
        assert torch.equal(outside, later)
        """
    )


def test_weights_come_back_at_their_addresses() -> None:
    """Offload and restore as an engine does them: copy out, unmap, map other chunks, copy in."""
    in_process(
        """
        from native._native import copy
        from native.digest import content_digest

        install_hook()
        size, chunk = 128 * MIB, 32 * MIB
        arena = arena_of(size)
        activate(arena)
        model = torch.nn.Linear(4096, 4096, bias=False)
        activate(None)
        with torch.no_grad():
            want = model(torch.ones(2, 4096))
        master = torch.empty(arena.capacity, dtype=torch.uint8)
        extents = arena.extents()
        ranges = [(arena.base + at, length) for at, length in extents]
        digest = content_digest(ranges)
        copy([(master.data_ptr() + at, arena.base + at, length) for at, length in extents], 2)

        used = [arena.base + index * chunk for index in arena.chunks_in_use()]
        driver.unmap_many(used)
        driver.map_many([(va, driver.create(chunk)) for va in used])
        assert content_digest(ranges) != digest
        with torch.no_grad():
            assert not torch.equal(model(torch.ones(2, 4096)), want)
        copy([(arena.base + at, master.data_ptr() + at, length) for at, length in extents], 2)

        assert content_digest(ranges) == digest
        with torch.no_grad():
            assert torch.equal(model(torch.ones(2, 4096)), want)
        """
    )


def test_packed_weights_of_vllms_kernels_land_in_the_arena() -> None:
    """oneDNN packs weights inside vLLM's library, into memory that no tensor shows."""
    in_process(
        """
        import importlib.util, pathlib

        folder = pathlib.Path(importlib.util.find_spec("vllm").origin).parent
        before = install_hook()
        wanted = "_C_AVX512.*" if "avx512f" in _native.cpu_features() else "_C.*"
        torch.ops.load_library(str(next(folder.glob(wanted))))
        assert install_hook() > before, "a library loaded later is hooked by the next call"
        assert any("/vllm/_C" in path for path, _ in hooked_libraries())

        arena = arena_of(128 * MIB)
        weight = torch.randn(2048, 2048).to(torch.bfloat16)
        activate(arena)
        handler = torch.tensor(torch.ops._C.create_onednn_mm_handler(weight.t(), 128))
        activate(None)
        assert arena.live_bytes >= weight.nbytes, (arena.live_bytes, weight.nbytes)

        want = weight.float().sum(1)
        out = torch.empty(1, 2048, dtype=torch.bfloat16)
        torch.ops._C.onednn_mm(out, torch.ones(1, 2048, dtype=torch.bfloat16), None, handler)
        assert torch.allclose(out.float(), want, atol=1.0), (out.float() - want).abs().max()
        """
    )


def test_a_full_arena_spills_to_libc_and_counts_it() -> None:
    in_process(
        """
        install_hook()
        arena = arena_of(32 * MIB)
        activate(arena)
        first, second = torch.ones(4 * MIB), torch.ones(8 * MIB)
        activate(None)
        assert inside(first, arena) and not inside(second, arena)
        assert arena.spilled_bytes >= 32 * MIB and arena.spilled_blocks == 1
        del first, second
        assert arena.live_bytes == 0
        """
    )


def test_the_smallest_block_can_be_chosen_and_arenas_change_hands() -> None:
    in_process(
        """
        install_hook()
        one, other = arena_of(32 * MIB, 1 << 45), arena_of(32 * MIB)
        activate(one, min_block=MIB)
        small, large = torch.ones(1000), torch.ones(MIB)
        activate(other, min_block=1)
        tiny = torch.ones(1)
        activate(one)
        again = torch.ones(MIB)
        activate(None)
        assert [inside(t, one) for t in (small, large, tiny, again)] == [False, True, False, True]
        assert inside(tiny, other)
        large_at = large.data_ptr()
        del large, tiny, again
        assert (one.live_bytes, other.live_bytes) == (0, 0)

        activate(other)
        held = torch.ones(MIB)
        activate(None)
        base = other.base
        del other  # Python lets go of it; its blocks must still find it
        gc.collect()
        assert held.data_ptr() >= base and bool((held == 1).all())
        del held
        gc.collect()
        """
    )


def test_what_cannot_be_activated_is_refused() -> None:
    in_process(
        """
        def refused(error, arena):
            try:
                activate(arena)
            except error as refusal:
                return str(refusal)
            raise SystemExit("activated")

        base = 1 << 45
        arena = Arena(base, 4 * MIB, 2 * MIB)
        assert "install_hook" in refused(RuntimeError, arena)
        activate(None)
        install_hook()
        activate(arena)
        assert "overlaps" in refused(ValueError, Arena(base + 2 * MIB, 4 * MIB, 2 * MIB))
        activate(arena)
        for i in range(1, 16):
            activate(Arena(base + i * 4 * MIB, 4 * MIB, 2 * MIB))
        assert "16 arenas" in refused(RuntimeError, Arena(base + 64 * MIB, 4 * MIB, 2 * MIB))
        activate(None)
        assert torch.ones(MIB).sum() == MIB
        """
    )


def test_many_threads_allocate_while_the_arena_comes_and_goes() -> None:
    in_process(
        """
        from concurrent.futures import ThreadPoolExecutor

        install_hook()
        arenas = [arena_of(64 * MIB), arena_of(64 * MIB)]

        def worker(number):
            kept = []
            for i in range(400):
                tensor = torch.full((20000 + 1000 * (i % 7),), float(number))
                kept.append(tensor)
                if len(kept) > 8:
                    old = kept.pop(i % 8)
                    assert bool((old == number).all())
            return all(bool((tensor == number).all()) for tensor in kept)

        with ThreadPoolExecutor(6) as pool:
            futures = [pool.submit(worker, number) for number in range(6)]
            while not all(future.done() for future in futures):
                for arena in (*arenas, None):
                    activate(arena)
                    install_hook()
            assert all(future.result() for future in futures)
        activate(None)
        del futures
        gc.collect()
        assert [arena.live_bytes for arena in arenas] == [0, 0]
        assert any(arena.peak_bytes for arena in arenas)
        """
    )


def test_pages_that_the_loader_protected_are_protected_again() -> None:
    in_process(
        """
        def protections():
            lines = open("/proc/self/maps").read().splitlines()
            return [line.split()[:2] for line in lines if "libc10.so" in line or "libtorch_cpu.so" in line]

        before = protections()
        install_hook()
        assert protections() == before
        """
    )


def test_freeing_a_block_twice_ends_the_process_as_libc_does() -> None:
    stderr = in_process(
        """
        import ctypes

        install_hook()
        arena = arena_of(32 * MIB)
        activate(arena)
        tensor = torch.ones(MIB)
        activate(None)
        arena.free(tensor.data_ptr())
        del tensor
        """,
        fails=True,
    )
    assert "no live block starts" in stderr


def test_without_torch_there_is_nothing_to_hook() -> None:
    code = "from native._native import install_hook; assert install_hook() == 0"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)


def test_torch_clears_what_it_promises_to_clear_in_a_block_used_before() -> None:
    in_process(
        """
        install_hook()
        arena = arena_of(32 * MIB)
        activate(arena)
        dirty = torch.full((MIB,), 7.0)
        at = dirty.data_ptr()
        del dirty
        clean = torch.zeros(MIB)
        activate(None)
        assert clean.data_ptr() == at and bool((clean == 0).all())
        """
    )
