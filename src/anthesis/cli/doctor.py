"""`anthesis doctor`: what this machine offers, and what anthesis can use of it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from typing import Any

import typer

from anthesis import __version__
from anthesis.cli import options
from anthesis.cli.document import print_json
from anthesis.cores import usable_cores
from anthesis.errors import AnthesisError
from anthesis.host import memory_bandwidth, processor_name
from anthesis.memory import available_memory_bytes
from anthesis.units import counted

BANDWIDTH_BYTES = 1 << 30
BANDWIDTH_S = 1.0
PEAK_S = 0.1
"""More of them than where a run waits for it: here the measurement is what was asked for."""


def doctor(json: options.Json = False) -> None:
    """Show what this machine offers and what anthesis can use of it. Takes a few seconds.

    Exit code 1 means that something needed is broken: a package is missing, or no device can be used.

    $ anthesis doctor --json
    """
    findings = examine()
    if json:
        print_json(findings)
    else:
        for label, text in _lines(findings):
            typer.echo(f"{label:<22} {text}")
    if findings["problems"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """All there is to find out, as a JSON document; `problems` lists what is needed and broken."""
    from anthesis.devices import DEVICES

    needed = _packages()
    devices = {name: _device(name) for name in DEVICES}
    problems = [f"the package {name} is not installed" for name, version in needed[""].items() if version is None]
    if not any(device["usable"] for device in devices.values()):
        problems.append("no device can be used")
    return {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "usable_cores": usable_cores(),
        "installed_cores": os.cpu_count(),
        "available_memory_bytes": available_memory_bytes(),
        "native": _native(),
        "memory_bandwidth": _bandwidth(),
        "multiply_add_peak": _peaks(),
        "devices": devices,
        "packages": needed[""],
        "extras": {extra: versions for extra, versions in needed.items() if extra},
        "default_model": _default_model(),
        "hugging_face": _hugging_face(),
        "problems": problems,
    }


def _native() -> dict[str, Any]:
    from anthesis.native import cpu_features

    try:
        return {"built": True, "features": cpu_features()}
    except AnthesisError as error:
        return {"built": False, "reason": str(error)}


def _bandwidth() -> dict[str, Any]:
    """The speed at which all cores together read memory, or why it was not measured."""
    try:
        found = memory_bandwidth(BANDWIDTH_BYTES, BANDWIDTH_S)
    except AnthesisError as error:
        return {"reason": f"not measured: {error}"}
    return {
        "median_bytes_per_s": found.median,
        "best_bytes_per_s": max(found.samples),
        "samples": len(found.samples),
        "threads": found.threads,
        "buffer_bytes": found.buffer_bytes,
    }


def _peaks() -> dict[str, Any]:
    """The most multiply-adds that all cores together do, by the kind of weights, or why that was not measured."""
    from anthesis.native import multiply_add_peak

    try:
        peaks = {kind: multiply_add_peak(kind, usable_cores(), PEAK_S) for kind in ("fp32", "bf16", "int8")}
    except AnthesisError as error:
        return {"reason": f"not measured: {error}"}
    if None in peaks.values():
        return {"reason": "not known of a processor that runs the portable kernels"}
    return {"threads": usable_cores(), "per_s": peaks}


def _device(name: str) -> dict[str, Any]:
    from anthesis.devices import open_device

    try:
        info = open_device(name).info()
    except AnthesisError as error:
        return {"usable": False, "reason": str(error)}
    return {"usable": True, "description": info.description, "memory_bytes": info.memory_bytes}


def _packages() -> dict[str, dict[str, str | None]]:
    """Versions of the packages each extra needs, "" being the core; None for one that is not installed."""
    from importlib import metadata  # here, since the help of all commands would wait for it

    packages: dict[str, dict[str, str | None]] = {"": {}}
    for requirement in metadata.requires("anthesis") or ():
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        extra = re.search(r"extra\s*==\s*[\"']([^\"']+)", requirement)
        assert name is not None
        if name[0] != "anthesis":  # an extra that includes another one
            packages.setdefault(extra[1] if extra else "", {})[name[0]] = _version(name[0])
    return packages


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _default_model() -> dict[str, str | None]:
    from anthesis.checkpoint.default import default_model

    try:
        return {"path": str(default_model())}
    except AnthesisError as error:
        return {"path": None, "reason": str(error)}


def _hugging_face() -> dict[str, Any]:
    if _version("huggingface_hub") is None:
        return {"cache": None, "offline": None}
    from huggingface_hub import constants

    return {"cache": constants.HF_HUB_CACHE, "offline": constants.HF_HUB_OFFLINE}


def _lines(findings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, text) of each line that people see."""
    yield "anthesis", f"{findings['version']}, Python {findings['python']}"
    yield "platform", findings["platform"]
    yield "processor", findings["processor"]
    yield "cores", f"{findings['usable_cores']} usable of {findings['installed_cores']}"
    yield "memory", f"{_gib(findings['available_memory_bytes'])} available"
    yield "native extension", _native_line(findings["native"])
    yield "memory bandwidth", _bandwidth_line(findings["memory_bandwidth"])
    yield "arithmetic peak", _peak_line(findings["multiply_add_peak"])
    for name, device in findings["devices"].items():
        found = f"yes: {device['description']}" if device["usable"] else f"no: {device['reason']}"
        yield f"device {name}", found
    yield "packages", _versions(findings["packages"])
    for extra, versions in findings["extras"].items():
        yield f"extra {extra}", _versions(versions)
    model = findings["default_model"]
    yield "default model", model["path"] or model["reason"]
    hub = findings["hugging_face"]
    yield "Hugging Face", f"cache {hub['cache']}, {'offline' if hub['offline'] else 'may use the network'}"
    for problem in findings["problems"]:
        yield "BROKEN", problem


def _native_line(native: dict[str, Any]) -> str:
    if not native["built"]:
        return f"no: {native['reason']}"
    there = [name for name, has in native["features"].items() if has]
    missing = [name for name, has in native["features"].items() if not has]
    return f"yes; processor has {' '.join(there) or 'none'}; not {' '.join(missing) or 'any'}"


def _bandwidth_line(bandwidth: dict[str, Any]) -> str:
    if "reason" in bandwidth:
        return str(bandwidth["reason"])
    return (
        f"{bandwidth['median_bytes_per_s'] / 1e9:.1f} GB/s median, {bandwidth['best_bytes_per_s'] / 1e9:.1f} best of "
        f"{bandwidth['samples']} passes: {bandwidth['threads']} threads reading {_gib(bandwidth['buffer_bytes'])}; "
        "swings on a shared machine"
    )


def _peak_line(peak: dict[str, Any]) -> str:
    if "reason" in peak:
        return str(peak["reason"])
    rates = ", ".join(f"{kind} {per_s / 1e9:,.0f}" for kind, per_s in peak["per_s"].items())
    return f"{rates} billion multiply-adds/s: {counted(peak['threads'], 'thread')}, in registers"


def _versions(versions: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version or 'not installed'}" for name, version in versions.items())


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
