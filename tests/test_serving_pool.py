"""The queue of the server and its workers: bounds, deadlines, retries, replacement and the end, without processes."""

import asyncio

import pytest
import serving
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import fake_pool, running, settle

from minigdino import CheckpointError
from minigdino.serving import pool as pools
from minigdino.serving.pool import Pool, WorkerEnded
from minigdino.serving.refusals import Refused

JOB = {"kind": "detect"}


async def at_once(header):
    return {"of": header.get("number")}


def gate():
    """An answer that waits for an event."""
    opened = asyncio.Event()

    async def answer(header):
        await opened.wait()
        return {"of": header.get("number")}

    return opened, answer


def run(test):
    asyncio.run(asyncio.wait_for(test, 20))


async def within(seconds, awaitable):
    """Set the time limit of a request, as the web application does."""
    async with asyncio.timeout(seconds):
        return await awaitable


async def refused(awaitable):
    with pytest.raises(Refused) as caught:
        await awaitable
    return caught.value


def test_each_request_gets_its_own_answer():
    async def test():
        pool, _ = fake_pool(at_once, workers=3, queue=100)
        async with running(pool):
            answers = await asyncio.gather(*(pool.ask({**JOB, "number": i}) for i in range(50)))
        assert [header["of"] for header, _ in answers] == list(range(50))

    run(test())


def test_a_worker_has_one_request_at_a_time_in_the_order_of_arrival():
    async def test():
        running_now = most = 0
        order = []

        async def answer(header):
            nonlocal running_now, most
            order.append(header["number"])
            running_now += 1
            most = max(most, running_now)
            await asyncio.sleep(0.001)
            running_now -= 1
            return {}

        pool, _ = fake_pool(answer, workers=2, queue=100)
        async with running(pool):
            await asyncio.gather(*(pool.ask({**JOB, "number": i}) for i in range(20)))
        assert most == 2
        assert order == sorted(order)

    run(test())


@pytest.mark.parametrize(("workers", "queue"), [(1, 0), (1, 2), (3, 4)])
def test_a_full_queue_refuses_with_the_seconds_to_wait(workers, queue):
    async def test():
        opened, answer = gate()
        pool, _ = fake_pool(answer, workers=workers, queue=queue)
        async with running(pool):
            accepted = [asyncio.create_task(pool.ask({**JOB, "number": i})) for i in range(workers + queue)]
            await settle()
            assert (pool.busy, pool.waiting) == (workers, queue)
            refusal = await refused(pool.ask(JOB))
            assert refusal.status == 503
            assert int(refusal.headers["Retry-After"]) >= 1
            assert f"{queue} requests is full" in str(refusal)
            opened.set()
            assert [header["of"] for header, _ in await asyncio.gather(*accepted)] == list(range(workers + queue))
            await pool.ask(JOB)
            assert (pool.busy, pool.waiting) == (0, 0)

    run(test())


def test_the_seconds_to_wait_are_the_measured_ones():
    async def test():
        now = 0.0

        async def answer(header):
            nonlocal now
            now += 8
            return {}

        pool, _ = fake_pool(answer, workers=2, queue=9, clock=lambda: now)
        async with running(pool):
            assert pool.wait_seconds() == 1
            await pool.ask(JOB)
            opened, waiting = gate()
            for worker in [slot.worker for slot in pool._slots]:
                worker.answer = waiting
            asked = [asyncio.create_task(pool.ask(JOB)) for _ in range(5)]
            await settle()
            assert (pool.busy, pool.waiting) == (2, 3)
            assert pool.wait_seconds() == 20  # 5 requests of 8 s on 2 workers
            opened.set()
            await asyncio.gather(*asked)

    run(test())


def test_a_request_that_waits_too_long_is_dropped_before_work_begins():
    async def test():
        opened, answer = gate()
        pool, started = fake_pool(answer)
        async with running(pool):
            first = asyncio.create_task(pool.ask({**JOB, "number": 0}))
            await settle()
            with pytest.raises(TimeoutError):
                await within(0.05, pool.ask({**JOB, "number": 1}))
            assert pool.waiting == 0
            opened.set()
            await first
            assert [header["number"] for worker in started for header in worker.asked] == [0]

    run(test())


def test_the_seconds_in_the_queue_are_known_of_each_accepted_request():
    async def test():
        opened, answer = gate()
        now, waited = 0.0, []
        pool, _ = fake_pool(answer, queue=2, clock=lambda: now)
        pool.waited = waited.append
        async with running(pool):
            asked = [asyncio.create_task(pool.ask({**JOB, "number": i})) for i in range(3)]
            await settle()
            assert (await refused(pool.ask(JOB))).status == 503  # it does not wait
            assert waited == [0]
            now = 4.0
            asked[1].cancel()  # its client has left, or it is too late
            await settle()
            assert waited == [0, 4]
            now = 5.0
            opened.set()
            await asyncio.gather(asked[0], asked[2])
            assert waited == [0, 4, 5]

    run(test())


def test_a_request_whose_client_has_left_is_dropped():
    async def test():
        opened, answer = gate()
        pool, started = fake_pool(answer)
        async with running(pool):
            first = asyncio.create_task(pool.ask({**JOB, "number": 0}))
            await settle()
            second = asyncio.create_task(pool.ask({**JOB, "number": 1}))
            await settle()
            assert pool.waiting == 1
            second.cancel()
            await settle()
            assert pool.waiting == 0
            opened.set()
            await first
            await pool.ask({**JOB, "number": 2})
            assert [header["number"] for header in started[0].asked] == [0, 2]

    run(test())


def test_a_worker_that_dies_is_replaced_and_its_request_tried_once_more():
    async def test():
        deaths = [1]

        async def answer(header):
            if deaths:
                deaths.pop()
                raise WorkerEnded
            return {"of": header["number"]}

        lines = []
        pool, started = fake_pool(answer, log=lines.append)
        async with running(pool):
            assert (await pool.ask({**JOB, "number": 7}))[0]["of"] == 7
            assert [len(worker.asked) for worker in started] == [1, 1]
            assert pool.restarts == {"died": 1, "stuck": 0, "memory": 0, "broken": 0}
        assert lines == [f"worker {started[0].pid} is replaced: it has ended"]

    run(test())


def test_a_request_that_kills_two_workers_fails_and_others_do_not(monkeypatch):
    monkeypatch.setattr(pools, "PAUSE", 0.001)

    async def test():
        async def answer(header):
            if header["number"] == 0:
                raise WorkerEnded
            return {"of": header["number"]}

        pool, started = fake_pool(answer, workers=2)
        async with running(pool):
            asked = [asyncio.create_task(pool.ask({**JOB, "number": i})) for i in range(6)]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            assert answers[0].status == 500
            assert "2 workers that were to process it have ended" in str(answers[0])
            assert [header["of"] for header, _ in answers[1:]] == [1, 2, 3, 4, 5]
            assert sum(header["number"] == 0 for worker in started for header in worker.asked) == 2

    run(test())


def test_a_request_that_no_worker_begins_fails_in_the_end(monkeypatch):
    monkeypatch.setattr(pools, "PAUSE", 0.001)

    async def test():
        async def answer(header):
            raise WorkerEnded(begun=False)

        pool, started = fake_pool(answer, workers=3)
        async with running(pool):
            refusal = await refused(pool.ask(JOB))
            assert refusal.status == 500
            assert "5 workers that were to process it have ended" in str(refusal)
            assert sum(len(worker.asked) for worker in started) == 5

    run(test())


def test_a_worker_that_has_ended_gets_no_request():
    async def test():
        pool, started = fake_pool(at_once, workers=2)
        async with running(pool):
            for worker in started[:2]:
                worker.kill()  # the pool takes note in the next turn of the event loop
            assert (await pool.ask({**JOB, "number": 1}))[0]["of"] == 1
            assert [len(worker.asked) for worker in started[:2]] == [0, 0]

    run(test())


@given(st.integers(1, 4), st.lists(st.tuples(st.sets(st.integers(0, 3)), st.integers(0, 3), st.integers(1, 5)),
                                   min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_deaths_of_idle_workers_lose_no_request(workers, rounds):
    """Each round: idle workers die, of which the pool learns some turns of the event loop later; requests arrive."""
    async def test():
        pool, _ = fake_pool(at_once, workers=workers)
        async with running(pool):
            for victims, turns, count in rounds:
                while pool.ready < workers:
                    await asyncio.sleep(0.001)
                dead = [slot.worker for i, slot in enumerate(pool._slots) if i in victims]
                for worker in dead:
                    worker.dead = True
                asked = [asyncio.create_task(pool.ask({**JOB, "number": i})) for i in range(count)]
                for _ in range(turns):
                    await asyncio.sleep(0)
                for worker in dead:
                    worker.kill()
                assert [header["of"] for header, _ in await asyncio.gather(*asked)] == list(range(count))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pools, "PAUSE", 0.001)
        patch.setattr(pools, "MAX_PAUSE", 0.002)
        run(test())


def test_an_idle_worker_that_dies_is_replaced():
    async def test():
        pool, started = fake_pool(at_once)
        async with running(pool):
            started[0].kill()
            await settle()
            assert pool.ready == 0
            assert (await pool.ask({**JOB, "number": 1}))[0]["of"] == 1
            assert len(started) == 2

    run(test())


def test_a_worker_that_gives_no_answer_is_killed_and_its_request_is_not_repeated():
    async def test():
        _, answer = gate()
        pool, started = fake_pool(answer, timeout=0.03)
        async with running(pool):
            with pytest.raises(TimeoutError):
                await within(0.03, pool.ask(JOB))
            await asyncio.wait_for(started[0].ended, 5)
            await settle()
            assert pool.restarts["stuck"] == 1
            assert sum(len(worker.asked) for worker in started) == 1

    run(test())


def test_an_idle_worker_that_does_not_answer_pings_is_not_ready_and_then_replaced(monkeypatch):
    monkeypatch.setattr(pools, "PING", 0.01)
    monkeypatch.setattr(pools, "STALE", 0.03)
    monkeypatch.setattr(pools, "PING_LIMIT", 0.1)

    class Stopped(serving.Fake):
        stopped = False

        async def ask(self, header, blocks=()):
            while self.stopped:
                await asyncio.sleep(0.01)
            return await super().ask(header, blocks)

    async def test():
        started = []

        async def start():
            started.append(Stopped(at_once))
            return started[-1]

        pool = Pool(start, 1, queue=1, timeout=5)
        async with running(pool):
            await asyncio.sleep(0.05)
            assert pool.ready == 1
            started[0].stopped = True
            await asyncio.sleep(0.06)
            assert pool.ready == 0
            await asyncio.sleep(0.15)
            assert (pool.ready, pool.restarts["stuck"], len(started)) == (1, 1, 2)

    run(test())


def test_a_worker_above_the_memory_limit_is_replaced_between_requests():
    async def test():
        async def answer(header):
            return {"memory": header["number"], "of": header["number"]}

        pool, started = fake_pool(answer, max_memory=100)
        async with running(pool):
            for number in (99, 100, 101, 5):
                assert (await pool.ask({**JOB, "number": number}))[0]["of"] == number
            assert [[header["number"] for header in worker.asked] for worker in started] == [[99, 100, 101], [5]]
            assert pool.restarts["memory"] == 1
            assert pool.memory == [5]

    run(test())


def test_a_repeated_picture_goes_to_the_worker_that_has_its_features():
    async def test():
        pool, started = fake_pool(at_once, workers=3)
        async with running(pool):
            for digest in "abcabcacb":
                await pool.ask({**JOB, "number": digest}, digests=[digest])
            seen = [{header["number"] for header in worker.asked} for worker in started]
            assert sorted(map(len, seen)) == [1, 1, 1]

    run(test())


def test_a_picture_goes_to_any_free_worker_if_the_one_with_its_features_is_busy():
    async def test():
        opened, answer = gate()
        pool, started = fake_pool(answer, workers=2)
        async with running(pool):
            asked = [asyncio.create_task(pool.ask({**JOB, "number": 0}, digests=["a"])) for _ in range(2)]
            await settle()
            assert pool.busy == 2
            opened.set()
            await asyncio.gather(*asked)

    run(test())


def test_the_pool_drains():
    async def test():
        opened, answer = gate()
        pool, _ = fake_pool(answer)
        async with running(pool):
            accepted = [asyncio.create_task(pool.ask({**JOB, "number": i})) for i in range(3)]
            await settle()
            drained = asyncio.create_task(pool.drain())
            await settle()
            refusal = await refused(pool.ask(JOB))
            assert refusal.status == 503
            assert refusal.headers["Connection"] == "close"
            assert not drained.done()
            opened.set()
            await drained
            assert all(task.done() for task in accepted)
            assert [header["of"] for header, _ in await asyncio.gather(*accepted)] == [0, 1, 2]

    run(test())


def test_draining_takes_no_longer_than_the_time_limits_of_requests():
    async def test():
        _, answer = gate()
        pool, _ = fake_pool(answer)
        async with running(pool):
            asked = [asyncio.create_task(within(0.05, pool.ask(JOB))) for _ in range(3)]
            await settle()
            await pool.drain()
            assert [type(error) for error in await asyncio.gather(*asked, return_exceptions=True)] == [TimeoutError] * 3

    run(test())


def test_an_error_at_the_start_is_raised_and_no_worker_is_left():
    async def test():
        started = []

        async def start():
            if started:
                raise CheckpointError("no model")
            started.append(serving.Fake(at_once))
            return started[-1]

        with pytest.raises(CheckpointError, match="no model"):
            await Pool(start, 2, queue=1, timeout=1).start()
        assert started[0].ended.done()

    run(test())


@pytest.mark.parametrize(("error", "shown"), [(CheckpointError("not now"), "not now"),
                                              (ValueError("a fault"), "ValueError('a fault')")])
def test_a_worker_that_cannot_start_again_is_tried_until_it_can(monkeypatch, error, shown):
    monkeypatch.setattr(pools, "PAUSE", 0.001)

    async def test():
        started, failures, lines = [], [], []

        async def start():
            if started and len(failures) < 3:
                failures.append(True)
                raise error
            started.append(serving.Fake(at_once))
            return started[-1]

        pool = Pool(start, 1, queue=5, timeout=5, log=lines.append)
        async with running(pool):
            started[0].kill()
            assert (await pool.ask({**JOB, "number": 3}))[0]["of"] == 3
        assert len(failures) == 3
        assert lines[1:] == [f"a worker cannot start, and is tried again: {shown}"]

    run(test())


@pytest.mark.parametrize("memory", ["many", ValueError("no JSON")])
def test_an_answer_that_breaks_the_protocol_ends_only_its_worker(memory):
    async def test():
        answers = [memory]

        async def answer(header):
            if not answers:
                return {"of": header["number"]}
            if isinstance(answers[0], Exception):
                raise answers.pop()
            return {"of": header["number"], "memory": answers.pop()}

        lines = []
        pool, started = fake_pool(answer, max_memory=100, log=lines.append)
        async with running(pool):
            for number in range(3):
                assert (await pool.ask({**JOB, "number": number}))[0]["of"] == number
        assert len(started) == 2
        assert lines[0].startswith(f"worker {started[0].pid} gave no valid answer: ")
        assert lines[1:] == [f"worker {started[0].pid} is replaced: it broke the protocol"]

    run(test())


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_whatever_happens_each_request_is_answered_exactly_once(data):
    """Deaths, slow work, clients that leave: each request ends in its own answer or in a refusal, and none is lost."""
    n = data.draw(st.integers(1, 12))
    acts = data.draw(st.lists(st.sampled_from(["ok", "ok", "die", "slow", "die once"]), min_size=n, max_size=n))
    leaving = data.draw(st.sets(st.integers(0, n - 1)))
    workers, queue = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 12))

    async def test():
        begun = dict.fromkeys(range(n), 0)

        async def answer(header):
            number = header["number"]
            begun[number] += 1
            await asyncio.sleep(0)
            if acts[number] == "die" or (acts[number] == "die once" and begun[number] == 1):
                raise WorkerEnded
            if acts[number] == "slow":
                await asyncio.sleep(10)
            return {"of": number}

        pool, _ = fake_pool(answer, workers=workers, queue=queue, timeout=0.1)
        async with running(pool):
            asked = [asyncio.create_task(within(0.1, pool.ask({**JOB, "number": i}))) for i in range(n)]
            await asyncio.sleep(0)
            for i in leaving:
                asked[i].cancel()
            results = await asyncio.gather(*asked, return_exceptions=True)
            assert pool.waiting == 0
            await pool.drain()
        for i, result in enumerate(results):
            assert begun[i] <= 2
            if isinstance(result, tuple):
                assert result[0]["of"] == i
                assert acts[i] in ("ok", "die once")
            elif i in leaving:
                assert isinstance(result, asyncio.CancelledError) or result.status == 503
            elif not isinstance(result, TimeoutError):
                assert isinstance(result, Refused)
                assert result.status == 503 or (result.status, acts[i]) == (500, "die")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pools, "PAUSE", 0.001)
        patch.setattr(pools, "MAX_PAUSE", 0.002)
        run(test())
