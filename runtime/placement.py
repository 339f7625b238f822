"""Placement: which provider of ONNX Runtime each node of an engine really ran on, by the profile of a run, and not by what was asked for.

ONNX Runtime gives a node that its CUDA provider has no kernel for to the CPU without a word, and copies features there and back. The profile (a
Chrome trace) has an event for each kernel: category `Node`, name `<node>_kernel_time`, and in its `args` the operator `op_name` and the `provider`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from segnas.errors import RequirementError, VerificationError

ON_CPU = frozenset({"Constant", "ConstantOfShape", "Range", "Shape", "Size"})
"""What may run on the CPU: operators that compute shapes, never features; our own graphs, all static, have none of them."""

COPIES = frozenset({"MemcpyFromHost", "MemcpyToHost"})
_SUFFIX = "_kernel_time"


class Placed(NamedTuple):
    """A node of the runtime's optimised graph, its operator, and the provider that ran it."""

    name: str
    op_type: str
    provider: str

    def __str__(self) -> str:
        return f"{self.name} ({self.op_type})"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the nodes of an engine ran: on the provider that was asked for, allowed on the CPU, and copies between the two."""

    provider: str
    nodes: tuple[Placed, ...]
    on_cpu: tuple[Placed, ...]
    copies: tuple[Placed, ...]

    @property
    def conditions(self) -> tuple[tuple[str, str], ...]:
        """The same as sorted pairs of text, for a report."""
        found = {
            "nodes_on_cpu": ", ".join(map(str, self.on_cpu)) or "none",
            "nodes_on_provider": str(len(self.nodes)),
            "copies_between": ", ".join(map(str, self.copies)) or "none",
        }
        return tuple(sorted(found.items()))


def placed_nodes(trace: Iterable[Mapping[str, Any]]) -> tuple[Placed, ...]:
    """Every node of the trace once, in the order of its first run; RequirementError where the trace does not say where its nodes ran."""
    found: dict[Placed, None] = {}
    for event in trace:
        if event.get("cat") != "Node" or not str(event.get("name", "")).endswith(_SUFFIX):
            continue
        told = event.get("args", {})
        if not told.get("provider") or not told.get("op_name"):
            raise RequirementError(f"onnxruntime's profile does not say which provider ran {event['name']!r}; another release of it may")
        found[Placed(str(event["name"]).removesuffix(_SUFFIX), str(told["op_name"]), str(told["provider"]))] = None
    if not found:
        raise RequirementError("onnxruntime's profile holds no node: it cannot be proven where the engine runs")
    return tuple(found)


def require_placement(trace: Iterable[Mapping[str, Any]], provider: str) -> Placement:
    """Where the nodes ran; VerificationError, naming them, where any that computes features ran on another provider than that."""
    nodes = placed_nodes(trace)
    copies = tuple(node for node in nodes if node.op_type in COPIES)
    mine = tuple(node for node in nodes if node.provider == provider and node not in copies)
    elsewhere = [node for node in nodes if node.provider != provider and node not in copies]
    strayed = [node for node in elsewhere if node.op_type not in ON_CPU]
    if strayed or not mine:
        shown = ", ".join(f"{node} on {node.provider}" for node in strayed[:8]) or "all of them"
        raise VerificationError(
            f"{provider!r} was asked for, and {len(strayed)} of {len(nodes)} nodes ran elsewhere: {shown}{' and more' if len(strayed) > 8 else ''}; "
            f"{len(copies)} copies between devices came with them. This build of onnxruntime has no such kernels there: install another release of "
            "onnxruntime-gpu, or use --runtime torch"
        )
    return Placement(provider, mine, tuple(elsewhere), copies)
