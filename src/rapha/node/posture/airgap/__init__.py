"""The air gap: the WAN interface is severed while a job trains.

One small privileged process (`helper.py`, run as `python -m rapha.node.posture.airgap`) alone holds
CAP_NET_ADMIN; the node talks to it over a unix socket (`client.py`). The rule it keeps: the gap is lifted
only when nobody holds the lock that the node, the launcher and the sandbox's init share (`hold.py`),
whoever died. What it will do is in its journal before it does it, and what it says was done it has read back
from the kernel.

Why the netlink messages are our own (`netlink.py`, `links.py`, `nftables.py`): the routes that a link
down flushes are put back byte for byte as the kernel dumped them, which a library that decodes and encodes
again can't promise; both tables and every rule go in one synchronous transaction; and the process that
holds the capability loads no third-party network code and runs no event loop.
"""
