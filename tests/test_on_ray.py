"""Workers on Ray: whatever actors and nodes do, each image is processed once. `tests/runs` has those on a cluster."""

import math
import sys
from types import ModuleType
from unittest import mock

import pytest
from fake_ray import Dies, FakeRay
from hypothesis import given
from hypothesis import strategies as st

from minigdino import ArgumentError, CheckpointError, cli
from minigdino.runs import on_ray
from minigdino.runs.items import Item

pytestmark = pytest.mark.once

MODEL = "0123456789abcdef"


class Detect:
    """Takes the place of `DetectBatch`. The prompt decides what it does."""

    def __init__(self, text, threads, **options):
        self.header = {"model": "m", "fingerprint": MODEL}
        if text == "no model":
            raise CheckpointError("m: no such file. Copy it")
        if text == "dies":
            raise Dies
        self.text = text

    def lines(self, items):
        if self.text == "changed":
            raise CheckpointError("m has changed")
        if self.text == "mistake":
            raise ZeroDivisionError
        for item in items:
            if "poison" in item.uri:
                raise Dies
        return [{"image": item.uri, "id": item.id, "width": 1, "height": 1, "detections": []} for item in items]


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    monkeypatch.setattr(on_ray, "DetectBatch", Detect)


def detect(ray, items, text="a cat.", **more):
    return on_ray.detect_each(ray, items, {"text": text}, MODEL, **more)


def images(n, poison=()):
    return [Item(7 * i, f"{'poison' if i in poison else 'image'}{i}") for i in range(n)]


@mock.patch.object(on_ray, "ENDS", math.inf)
@given(st.integers(0, 40), st.sets(st.integers(0, 39), max_size=4), st.lists(st.integers(1, 5), min_size=1, max_size=3),
       st.sampled_from([0.0, 0.05, 0.4]), st.sampled_from([0.0, 0.1, 0.3]), st.integers(1, 3),
       st.none() | st.integers(1, 6), st.integers())
def test_each_image_is_done_once_whatever_ends(n, poison, cpus, chance, outages, threads, workers, seed):
    ray, items, taken = FakeRay(cpus, chance, outages, seed), images(n, poison), []
    if max(cpus) < threads:
        return
    done, bound = {}, on_ray.LOOK_AHEAD * (workers or sum(cpu // threads for cpu in cpus))
    for lines in detect(ray, (taken.append(item) or item for item in items), threads=threads, workers=workers):
        for line in lines:
            assert done.setdefault(line["id"], line) is line
        assert len(taken) <= len(done) + 2 * bound  # of 10 million images, few are in memory
    assert done.keys() == {item.id for item in items}
    for item in items:
        line = done[item.id]
        assert line["image"] == item.uri and ray.deaths[item] <= on_ray.PROVEN_ENDS + 1  # the first loss does not count
        assert "error" not in line or ray.deaths[item] >= on_ray.PROVEN_ENDS  # never for the death of another one
    assert ray.most <= 2 * on_ray.LOOK_AHEAD + 1 and not any(actor.is_alive for actor in ray.actors)
    assert not ray.actors or ray.options == {"num_cpus": threads, "num_gpus": 0, "max_restarts": 0,
                                             "max_task_retries": 0, "scheduling_strategy": "SPREAD"}


def test_an_image_that_ends_workers_is_an_error_that_names_it():
    reports = []
    lines = sum(detect(FakeRay(), images(5, {2}), log=reports.append), [])
    (error,) = [line for line in lines if "error" in line]
    assert error == {"image": "poison2", "id": 14, "error": "poison2: two workers on the cluster have ended while they "
                     "processed it. Give each more memory by more --threads, or leave the image out"}
    assert reports == ["a worker on the cluster has ended, and is replaced (killed)"] * (on_ray.PROVEN_ENDS + 1)


@given(st.integers(1, 9), st.integers(1, 9))
def test_no_more_actors_than_images(n, cpus):
    ray = FakeRay([cpus])
    assert len(sum(detect(ray, images(n)), [])) == n
    assert len(ray.actors) == min(n, cpus)


def test_without_images_no_actor_starts():
    ray = FakeRay()
    assert list(detect(ray, [])) == [] and ray.actors == []


def test_nodes_that_join_get_actors(monkeypatch):
    monkeypatch.setattr(on_ray, "CHECK", 0.0)
    ray = FakeRay([1])
    results = detect(ray, images(30))
    next(results)
    assert len(ray.actors) == 1
    ray.cpus.append(4)
    assert len(sum(results, [])) == 29
    assert len(ray.actors) == 5


def test_the_run_goes_on_while_the_cluster_has_no_node(monkeypatch):
    """A spot market may take all nodes. An actor then waits for the next one."""
    monkeypatch.setattr(on_ray, "CHECK", 0.0)
    monkeypatch.setattr(on_ray, "PATIENCE", -1.0)
    ray, reports = FakeRay([2]), []
    results = detect(ray, images(9), log=reports.append)
    done = len(next(results))
    for actor in ray.actors:
        actor.end(fake_death())
    ray.cpus.clear()
    wait = ray.wait

    def joins_later(references, num_returns=1, timeout=None):
        if len(reports) > 5:
            ray.cpus[:] = [1]
        return wait(references, num_returns, timeout if ray.cpus else 0)

    monkeypatch.setattr(ray, "wait", joins_later)
    assert done + len(sum(results, [])) == 9
    assert "waiting for a node with 1 CPU that are free" in reports


def test_the_end_of_idle_actors_is_no_fault_of_an_image():
    """All nodes end while one image is left. It meets every idle actor, and none of them can begin it."""
    ray = FakeRay([9])
    results = detect(ray, images(10))
    while sum(len(actor.queue) > 0 for actor in ray.actors) != 1:
        next(results)
    for actor in ray.actors:
        actor.end(fake_death())
    assert not any("error" in line for line in sum(results, []))


def test_no_image_is_tried_without_end():
    with pytest.raises(CheckpointError, match=r"20 have ended in a row and none has finished one \(its node ended\)"):
        list(detect(FakeRay([4], outages=1.0), images(9)))


def fake_death():
    return FakeRay.exceptions.ActorDiedError("its node ended")


@pytest.mark.parametrize(("text", "message"), [
    ("no model", "m: no such file. Copy it"),
    ("changed", "m has changed"),
    ("dies", r"expected workers that finish images; 10 have ended in a row and none has finished one \(killed\)"),
])
def test_an_error_of_the_model_ends_the_run(text, message):
    ray = FakeRay()
    with pytest.raises(CheckpointError, match=message):
        list(detect(ray, images(9), text))
    assert not any(actor.is_alive for actor in ray.actors)


def test_another_model_on_a_node_ends_the_run():
    with pytest.raises(CheckpointError, match=f"fingerprint ffff on each node; got {MODEL}. Copy the same checkpoint"):
        list(on_ray.detect_each(FakeRay(), images(1), {"text": "a cat."}, "ffff"))


def test_a_mistake_in_the_program_is_not_hidden():
    with pytest.raises(FakeRay.exceptions.RayTaskError, match="ZeroDivisionError"):
        list(detect(FakeRay(), images(1), "mistake"))


def test_a_worker_that_cannot_import_ends_the_run(monkeypatch):
    monkeypatch.setattr(FakeRay.exceptions.ActorDiedError, "actor_init_failed", True)
    with pytest.raises(CheckpointError, match=r"expected minigdino .* on each node; a worker cannot import it"):
        list(detect(FakeRay(), images(9), "dies"))


@pytest.mark.parametrize(("cpus", "threads", "needed"), [([2, 2], 3, "3 CPUs"), ([], 1, "1 CPU")])
def test_no_node_has_room(cpus, threads, needed):
    with pytest.raises(ArgumentError, match=f"expected a node with {needed} for a worker; the cluster has none"):
        list(detect(FakeRay(cpus), images(1), threads=threads))


def test_a_gpu_for_each_worker():
    ray = FakeRay()
    ray.nodes = lambda: [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
                         {"Alive": True, "Resources": {"CPU": 8.0}},
                         {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 8.0}}]
    assert len(sum(detect(ray, images(9), gpus=1), [])) == 9
    assert len(ray.actors) == 2 and ray.options["num_gpus"] == 1


def test_a_run_that_is_stopped_ends_its_actors():
    ray = FakeRay()
    results = detect(ray, images(9))
    next(results)
    results.close()
    assert ray.actors and not any(actor.is_alive for actor in ray.actors)


def parsed(*more):
    arguments = cli.parser().parse_args(["run", "a.jpg", "a cat.", "--out", "found", *more])
    arguments.error = refuse
    return arguments


def refuse(message):
    raise SystemExit(message)


def test_without_ray_the_message_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ArgumentError, match="--ray needs the package ray"):
        on_ray.check(parsed("--ray"))


def test_a_source_behind_the_option_is_no_address(tmp_path):
    (tmp_path / "list.csv").touch()
    with pytest.raises(SystemExit, match=r"--ray needs the address of a cluster, or none; got .*csv', which exists"):
        on_ray.check(parsed("--ray", str(tmp_path / "list.csv")))


def test_ray_chooses_the_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    on_ray.check(parsed("--ray", "10.0.0.1:6379", "--device", "cuda"))
    with pytest.raises(ArgumentError, match="must be cpu or cuda with --ray, which chooses the GPUs; got cuda:1"):
        on_ray.check(parsed("--ray", "--device", "cuda:1"))


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "127.0.0.1", "[::1]:9", "cluster", "a:999999"])
def test_an_address_at_which_nothing_listens(monkeypatch, address):
    """Ray itself would wait for minutes."""
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    header = {"precision": "highest", "fingerprint": MODEL}
    with (pytest.raises(ArgumentError, match=r"^--ray .*: expected a running cluster, .* Check the address"),
          on_ray.results(parsed("--ray", address), "a cat.", {}, header, images(1), 1, str)):
        pass


def test_without_anything_to_do_there_is_no_cluster(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with on_ray.results(parsed("--ray", "127.0.0.1:9"), "a cat.", {}, {}, [], 0, str) as groups:
        assert list(groups) == []


def test_an_error_of_the_actor_travels():
    actor = on_ray.Actor()
    assert isinstance(actor.start("no-such-folder", MODEL, {"text": "no model", "threads": 1}), CheckpointError)
    assert actor.start(".", MODEL, {"text": "a cat.", "threads": 1}) is None
    assert actor.line(Item(1, "a.jpg"))["image"] == "a.jpg"
