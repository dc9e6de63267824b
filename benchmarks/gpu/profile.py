"""Where the time of a decode step goes on a card: launches, kernels, and the time that the card is at work."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType

from anthesis import LLM

STEPS = 8
SETTLING_STEPS = 4
"""Steps before: a graph is captured in the second of its size."""

TOP_KERNELS = 15
GRAPH_LAUNCHES = ("cudaGraphLaunch", "cuGraphLaunch")
KERNEL_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel")
"""Beginnings of the calls that launch something."""

TRANSFERS = ("Memcpy", "Memset")


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """All launches of one kernel.

    Attributes:
        name: of the kernel.
        count: launches in a step.
        step_s: time in a step.
    """

    name: str
    count: float
    step_s: float


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One step, on average over some.

    Attributes:
        steps: that were looked at.
        graph_launches: in a step.
        kernel_launches: one by one, outside graphs, in a step.
        kernels: run in a step, copies and fills not counted.
        transfers: copies and fills in a step.
        busy_s: time in a step in which the card is at work, all of these added up.
        top: the kernels that take most time.
    """

    steps: int
    graph_launches: float
    kernel_launches: float
    kernels: float
    transfers: float
    busy_s: float
    top: tuple[Kernel, ...]


@dataclass(frozen=True)
class Event:
    """Something that the profiler saw.

    Attributes:
        name: of the call or the kernel.
        on_card: it ran there.
        seconds: that it took.
    """

    name: str
    on_card: bool
    seconds: float


def prepare() -> None:
    """Lets the profiler attach before any graph is captured, and stay: else it may not see into graphs, or crash.

    Source:
        torch.profiler does the same for graphs of torch.compile (`DISABLE_CUPTI_LAZY_REINIT`, `TEARDOWN_CUPTI`).
    """
    os.environ["DISABLE_CUPTI_LAZY_REINIT"] = "1"
    os.environ["TEARDOWN_CUPTI"] = "0"
    if torch.cuda.is_available():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]):
            torch.zeros(1, device="cuda").add_(1)
            torch.cuda.synchronize()


def profile(llm: LLM, prompt_tokens: int, batch: int) -> Profile:
    """Looks at some decode steps, which the profiler makes slower for the host, but not for the card."""
    prompt = llm.made_up_prompt(prompt_tokens)
    tokens = SETTLING_STEPS + STEPS + batch + 2
    handles = [llm.submit(prompt, max_new_tokens=tokens, ignore_eos=True) for _ in range(batch)]
    try:
        while any(handle.num_tokens < SETTLING_STEPS for handle in handles):
            llm.step()
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_initialized():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as seen:
            for _ in range(STEPS):
                llm.step()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
    finally:
        for handle in handles:
            handle.close()
    events = (
        Event(event.name, event.device_type == DeviceType.CUDA, event.time_range.elapsed_us() / 1e6)
        for event in seen.events()
        if not getattr(event, "is_user_annotation", False)
    )
    return summarise(events, STEPS)


def summarise(events: Iterable[Event], steps: int) -> Profile:
    """The figures of a step.

    Args:
        events: of all steps.
        steps: how many there were.
    """
    graph_launches = kernel_launches = transfers = 0
    busy_s = 0.0
    kernels: dict[str, tuple[int, float]] = {}
    for event in events:
        if not event.on_card:
            graph_launches += event.name.startswith(GRAPH_LAUNCHES)
            kernel_launches += event.name.startswith(KERNEL_LAUNCHES)
            continue
        busy_s += event.seconds
        if event.name.startswith(TRANSFERS):
            transfers += 1
            continue
        count, seconds = kernels.get(event.name, (0, 0.0))
        kernels[event.name] = count + 1, seconds + event.seconds
    longest = sorted(kernels.items(), key=lambda kernel: -kernel[1][1])[:TOP_KERNELS]
    return Profile(
        steps=steps,
        graph_launches=graph_launches / steps,
        kernel_launches=kernel_launches / steps,
        kernels=sum(count for count, _ in kernels.values()) / steps,
        transfers=transfers / steps,
        busy_s=busy_s / steps,
        top=tuple(Kernel(name=name, count=count / steps, step_s=seconds / steps) for name, (count, seconds) in longest),
    )
