# Written by hand after native/src/module.cpp and bind_*.cpp; tests/test_native.py compares the two.

import numpy as np
from numpy.typing import NDArray

def read_bandwidth(nbytes: int, threads: int, seconds: float) -> list[float]: ...
def cpu_features() -> dict[str, bool]: ...
def sample(
    logits: NDArray[np.float32],
    positions: NDArray[np.int32],
    temperature: NDArray[np.float32],
    top_k: NDArray[np.int32],
    top_p: NDArray[np.float32],
    min_p: NDArray[np.float32],
    repetition_penalty: NDArray[np.float32],
    seed: NDArray[np.uint64],
    seen: NDArray[np.uint8],
    usable: int,
    threads: int,
    token: NDArray[np.int32],
    logprob: NDArray[np.float32],
    top_tokens: NDArray[np.int32],
    top_logprobs: NDArray[np.float32],
) -> None: ...
