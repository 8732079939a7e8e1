"""Version floors."""

from mycelia.proto.digests.floors import Floor, Floors

FLOORS = [Floor(bytes([number] * 38), bytes(16), 1_760_000_000_000, number, 1_760_000_000.5) for number in range(3)]


def test_floors_never_sink_and_are_bounded() -> None:
    floors = Floors(2, keep_s=10.0)
    owner, namespace = FLOORS[0].owner, FLOORS[0].namespace
    for epoch, seq in [(5, 5), (5, 4), (4, 9)]:
        floors.set(Floor(owner, namespace, epoch, seq, 100.0))
    assert floors.refuse(owner, namespace, (5, 5)) and not floors.refuse(owner, namespace, (5, 6))
    for floor in FLOORS[1:]:
        floors.set(floor)
    assert list(floors) == FLOORS[1:]
    floors.expire(FLOORS[0].at + 11.0)
    assert len(floors) == 0
