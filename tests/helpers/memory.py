"""What an action allocates, as torch's own allocator tells it: it depends on no malloc and on no other process."""

from itertools import accumulate

from torch.profiler import ProfilerActivity, profile


def peak_bytes(action):
    """The largest sum of bytes on the CPU that were allocated in `action` and not yet freed again."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes), default=0)
