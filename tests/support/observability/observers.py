"""What observers of calls hear, kept for tests; and a forward pass to tell them of."""

from convserve_server.observability.call_record import Observer
from convserve_server.scheduling.scheduler import Computation

PASS = Computation(
    began_ns=1, queue_us=10, compute_us=200, batch_size=4, device="cpu:0", warm=True, input_shape=(1, 2, 2, 1),
    output_shape=(1, 2, 2, 3), input_bytes=16, output_bytes=48,
)  # fmt: skip


class Heard(Observer):
    """An observer that keeps what it hears."""

    def __init__(self):
        self.words = []

    def began(self, call):
        self.words.append(("began", call.method))

    def computed(self, call, computation):
        self.words.append((call.items, computation))

    def refused(self, call, reason):
        self.words.append((call.items_refused, reason))

    def ended(self, call):
        self.words.append(call.code)
