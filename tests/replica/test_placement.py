from __future__ import annotations

import pytest

from tensair_dask.errors import ConfigurationError, NoWorkersError
from tensair_dask.replica.placement import (
    Place,
    ReplicaCount,
    WorkerFacts,
    place_more,
    place_replicas,
)


def workers(*specs: tuple) -> list[WorkerFacts]:
    return [
        WorkerFacts(f"tcp://{number}", *facts) for number, facts in enumerate(specs)
    ]


def one_each(facts: list[WorkerFacts]) -> list[Place]:
    return place_replicas(facts, ReplicaCount.of("all").count(len(facts)), "auto")


CPU = ("one", 4, 0, None)


def test_one_replica_on_each_worker_by_default():
    places = one_each(workers(CPU, CPU))
    assert [place.address for place in places] == ["tcp://0", "tcp://1"]
    assert {place.device for place in places} == {"cpu"}


def test_torch_threads_follow_the_workers_and_are_shared_by_its_replicas():
    assert place_replicas(workers(CPU), 1, "auto")[0].torch_threads == 4
    assert [p.torch_threads for p in place_replicas(workers(CPU), 2, "auto")] == [2, 2]
    assert place_replicas(workers(CPU), 9, "auto")[0].torch_threads == 1


def test_few_replicas_land_on_many_machines():
    places = place_replicas(
        workers(CPU, CPU, ("two", 4, 0, None), ("two", 4, 0, None)), 2, "auto"
    )
    assert [place.address for place in places] == ["tcp://0", "tcp://2"]


def test_replicas_of_a_host_spread_over_its_gpus():
    gpu = ("one", 1, 2, None)
    places = one_each(workers(gpu, gpu, gpu))
    assert [place.device for place in places] == ["cuda:0", "cuda:1", "cuda:0"]


def test_workers_that_see_a_device_of_their_own_use_that():
    places = one_each(workers(("one", 1, 2, "0,1"), ("one", 1, 2, "1,0")))
    assert [place.device for place in places] == ["cuda:0", "cuda:0"]


@pytest.mark.parametrize(
    ("first", "second"),
    [("0,1", "2,3"), ("0,1", "0,1")],
    ids=["numbers of the host", "numbers of the job"],
)
def test_batch_jobs_of_a_host_do_not_share_their_gpus(first, second):
    one, other = ("one", 1, 2, first, "job 1"), ("one", 1, 2, second, "job 2")
    places = one_each(workers(one, other, one, other))
    assert [place.device for place in places] == [
        "cuda:0",
        "cuda:0",
        "cuda:1",
        "cuda:1",
    ]


def test_batch_jobs_that_see_all_gpus_of_a_host_take_turns():
    places = one_each(
        workers(("one", 1, 2, None, "job 1"), ("one", 1, 2, None, "job 2"))
    )
    assert [place.device for place in places] == ["cuda:0", "cuda:1"]


def test_hosts_do_not_share_their_gpus():
    places = one_each(workers(("one", 1, 1, None), ("two", 1, 1, None), CPU))
    assert sorted(place.device for place in places) == ["cpu", "cuda:0", "cuda:0"]


def test_a_named_device_is_taken_as_it_is():
    assert place_replicas(workers(CPU), 1, "meta")[0].device == "meta"


def test_no_workers_says_how_to_start_some():
    with pytest.raises(NoWorkersError, match=r"cluster\.scale\(2\)"):
        place_replicas([], 1, "auto")


@pytest.mark.parametrize(
    "replicas", [0, -1, 1.5, "some", True, (2, 1), (0, 3), (1, 2, 3)]
)
def test_a_number_of_replicas_that_makes_no_sense_is_refused(replicas):
    with pytest.raises(ConfigurationError, match="whole number from 1"):
        ReplicaCount.of(replicas)


@pytest.mark.parametrize(
    ("replicas", "workers", "expected"),
    [
        ("all", 3, 3),
        (None, 3, 3),
        ("all", 0, 1),
        (2, 5, 2),
        (4, 1, 4),
        ((2, 4), 1, 2),
        ((2, 4), 3, 3),
        ((2, 4), 9, 4),
    ],
)
def test_the_count_of_replicas_is_what_the_workers_allow(replicas, workers, expected):
    assert ReplicaCount.of(replicas).count(workers) == expected


def test_further_replicas_go_where_there_are_the_fewest():
    facts = workers(CPU, CPU, CPU)
    present = [Place("tcp://0", "cpu", 4), Place("tcp://2", "cpu", 4)]
    (place,) = place_more(facts, present, 1, "auto")
    assert place == Place("tcp://1", "cpu", 4)
    places = place_more(facts, present, 3, "auto")
    assert [each.address for each in places] == ["tcp://1", "tcp://0", "tcp://1"]
    assert [each.torch_threads for each in places] == [2, 2, 2]


def test_further_replicas_take_the_gpus_that_are_free():
    facts = workers(("one", 1, 2, None), ("one", 1, 2, None))
    present = [Place("tcp://0", "cuda:0", 1), Place("tcp://gone", "cuda:1", 1)]
    assert place_more(facts, present, 1, "auto")[0].device == "cuda:1"
    assert place_more([], present, 1, "auto") == []


def test_replicas_go_to_workers_that_can_begin_at_once_and_are_empty():
    facts = [
        WorkerFacts("tcp://busy", "one", 1, ready=False),
        WorkerFacts("tcp://used", "one", 1, devices=("cpu",)),
        WorkerFacts("tcp://empty", "one", 1),
    ]
    order = ["tcp://empty", "tcp://used", "tcp://busy"]
    assert [p.address for p in place_replicas(facts, 3, "auto")] == order
    assert [p.address for p in place_more(facts, [], 3, "auto")] == order
    # Those of the same trainer count most.
    (place,) = place_more(facts, [Place("tcp://empty", "cpu", 1)], 1, "auto")
    assert place.address == "tcp://used"


def test_replicas_take_the_gpus_that_no_other_trainer_uses():
    facts = [
        WorkerFacts("tcp://0", "one", 1, 3, devices=("cuda:0", "cuda:1")),
        WorkerFacts("tcp://1", "one", 1, 3, devices=("cuda:0",)),
    ]
    assert [p.device for p in place_replicas(facts, 2, "auto")] == ["cuda:2", "cuda:1"]
    # Its own replica is one of those that are there.
    own = [Place("tcp://1", "cuda:0", 1)]
    assert [p.device for p in place_more(facts, own, 1, "auto")] == ["cuda:2"]
