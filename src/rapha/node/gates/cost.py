"""What a job can cost its dataset, by its signed terms: known before it runs."""

from __future__ import annotations

from rapha.node.gates.intake import Admitted
from rapha.node.node import Node
from rapha.spec.audited import longest_s
from rapha.spec.disclosure import Price
from rapha.spec.price import PriceContext, ended_bits, search_s, worst_price
from rapha.spec.surface import Quanta
from rapha.spec.verdicts import Scope, outgoing


def quanta(quantum_s: int) -> Quanta:
    """Steps of the published resource use."""
    return Quanta(duration_s=quantum_s)


def price_context(admitted: Admitted, quantum_s: int, moments: int, scope: Scope = "all") -> PriceContext:
    """What bounds everything that is told of this job where `scope` of its plan is released.

    `moments` is how many quantised moments of the job can be seen from outside.
    """
    job = admitted.job
    plan = outgoing(job.outputs, scope)
    return PriceContext(
        plan=plan,
        max_records=job.dataset.max_records,
        bucket=admitted.manifest.billing_bucket,
        wall_s=job.compute.wall_clock_s,
        cpu_s=job.compute.wall_clock_s * job.compute.cpus,
        memory_bytes=job.compute.memory_bytes,
        quanta=quanta(quantum_s),
        moments=moments,
        trains=job.kind == "train",
        # Everything that was rebuilt was searched, whatever of it leaves then.
        audit_s=longest_s(job, admitted.manifest) + search_s(job.outputs) - search_s(plan),
    )


def worst(node: Node, admitted: Admitted, scope: Scope = "all") -> Price:
    """The most that a job can cost, if `scope` of its plan is released."""
    context, private = _context(node, admitted, scope), admitted.job.private
    if private is None or scope != "all":
        return worst_price(context)
    return worst_price(context, private.epsilon, private.delta)


def ended(node: Node, admitted: Admitted) -> int:
    """Bits that a job's end can tell where nothing is released."""
    return ended_bits(_context(node, admitted, "all"))


def _context(node: Node, admitted: Admitted, scope: Scope) -> PriceContext:
    # The end can be seen, and where the WAN is severed also that it is back.
    moments = 1 if node.config.wan_interface is None else 2
    return price_context(admitted, node.config.quantum_s, moments, scope)
