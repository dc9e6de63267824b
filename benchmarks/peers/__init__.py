"""The parts of `benchmarks/peers.py`: what is compared, the peers' environments and model files, workers, the page."""
