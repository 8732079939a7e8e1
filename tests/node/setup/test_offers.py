"""Which models are proposed for a machine."""

from dataclasses import dataclass

from mycelia.node.setup.offers import MAX_OFFERS, Machine, Offer, givings, offers

GB = 10**9


@dataclass
class Known:
    size_bytes: int
    parameters: str = "many"
    about: str = "good"

    def memory_bytes(self, tokens: int) -> int:
        return self.size_bytes + GB // 2


CATALOGUE = {f"m{size}": Known(size * GB // 10) for size in (1, 6, 20, 25, 50, 180, 400)}
PACKAGED = Offer("smollm2", "135M", GB // 10, GB, is_here=True)


def names(machine: Machine) -> list[str]:
    return [offer.name for offer in offers(CATALOGUE, machine, [PACKAGED])]


def test_a_processor_gets_the_largest_model_that_it_can_read_for_each_token() -> None:
    assert names(Machine(64 * GB)) == ["m25", "m20", "m6", "m1", "m50", "smollm2"]
    assert names(Machine(4 * GB)) == ["m6", "m1", "smollm2"]
    assert names(Machine(GB // 4)) == ["smollm2"]


def test_a_gpu_gets_the_largest_model_that_it_holds() -> None:
    assert names(Machine(16 * GB, gpu_bytes=24 * GB))[0] == "m180"
    assert len(names(Machine(10**3 * GB, 10**3 * GB))) == MAX_OFFERS


def test_a_guest_takes_half_and_gives_way() -> None:
    guest, nights, all_ = givings(Machine(16 * 2**30))
    assert guest.settings == {"memory": 8, "polite": True} and nights.settings["hours"] == ["22:00-08:00"]
    assert all_.settings == {} and givings(Machine(2**29))[0].settings["memory"] == 0.5
